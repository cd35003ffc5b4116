"""What a distilling step asks of a teacher, wherever the teacher lives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from ekd_nemo.losses.pooling import PoolingKind
from ekd_nemo.losses.sparse import SparseTargets


@dataclass(frozen=True)
class TeacherNeeds:
    """What is asked for in one call.

    Attributes:
        distribution: the output distribution: final hidden states and the head, or sparse targets.
        layers: teacher layer (from 0, its output) -> the student's pipeline stages that want it.
        pooling: how the final hidden states become one embedding a segment; None: not asked for.
        final: final hidden states for another use than the distribution (token relations).
        dense: whether sparse targets are of no use for the distribution.
    """

    distribution: bool = False
    layers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    pooling: PoolingKind | None = None
    final: bool = False
    dense: bool = False

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return self.distribution or self.final or bool(self.layers) or self.pooling is not None


# What validation asks for, whatever the objective.
VALIDATION = TeacherNeeds(distribution=True, dense=True)


@dataclass(frozen=True)
class TeacherOutputs:
    """The teacher's view of a rank's microbatches, one entry of each list for each of them.

    What was not asked for, or is not wanted on this rank, is empty or None. Where the student uses
    sequence parallelism hidden states are this rank's part of the sequence, [S / ranks, B, H_t].

    Attributes:
        hidden: final hidden states [S, B, H_t]; on the student's last stage.
        head: [V_local, H_t], the rows of the student's shard; on the student's last stage.
        targets: sparse targets of all S * B tokens, in the order of `Microbatch.flat_labels`, in
            place of hidden states and head.
        layers: teacher layer -> [S, B, H_t]; on the stages that asked.
        embeddings: [segments of the microbatch, H_t], numbered as `Microbatch.flat_segments`, whole
            on every tensor-parallel rank; on the student's last stage.
    """

    hidden: list[Tensor] = field(default_factory=list)
    head: Tensor | None = None
    targets: list[SparseTargets] = field(default_factory=list)
    layers: Mapping[int, list[Tensor]] = field(default_factory=dict)
    embeddings: list[Tensor] = field(default_factory=list)


class TeacherSource(Protocol):
    """Gives the outputs for a step's microbatches before the student's schedule begins.

    All ranks of the student call it together, with their own microbatches: once a training step
    with what the objective needs, and in validation, where only the distribution is asked for.
    """

    def outputs(self, batches: Sequence[Any], needs: TeacherNeeds) -> TeacherOutputs:
        """The outputs for `batches`, without gradients."""
        ...
