"""What a distilling step asks of a teacher, wherever the teacher lives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class TeacherOutputs:
    """The teacher's view of a rank's microbatches.

    Attributes:
        hidden: one [S, B, H_t] for each microbatch ([S / ranks, B, H_t] with sequence
            parallelism); empty on ranks that hold no loss.
        head: [V_local, H_t]; None on ranks that hold no loss.
    """

    hidden: list[Tensor]
    head: Tensor | None


class TeacherSource(Protocol):
    """Gives the outputs for a step's microbatches before the student's schedule begins.

    All ranks of the student call it together, once a step, with their own microbatches.
    """

    def outputs(self, batches: Sequence[Any]) -> TeacherOutputs:
        """The outputs for `batches`, without gradients."""
        ...
