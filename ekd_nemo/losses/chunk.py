"""One chunk of tokens between its logits and their gradient: what all element-wise code shares.

Who makes the normalisers and the gradient (`torch_chunk`, `triton_chunk`) gets a `Problem` and a
`Chunk` and gives the same numbers back; `kernels` says which of them is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ekd_nemo.losses.collectives import max_over, sum_over
from ekd_nemo.losses.divergence import Divergence
from ekd_nemo.losses.sparse import SparseTargets
from ekd_nemo.losses.vocab import VocabRows


@dataclass(frozen=True)
class DenseTeacher:
    """The teacher's final hidden states [T, H_t] and the true rows of its head shard."""

    hidden: Tensor
    head: Tensor
    suffix = ""


Kernels = Literal["torch", "triton"]
Teacher = DenseTeacher | SparseTargets


@dataclass(frozen=True)
class Terms:
    """What is added up, and with which weights.

    Attributes:
        weight_ce: of the cross-entropy in the total.
        weight_response: of the response term (with its T^2) in the total.
        divergence: the response term's divergence.
        temperature: of teacher and student in the response term.
    """

    weight_ce: float
    weight_response: float
    divergence: Divergence
    temperature: float


@dataclass(frozen=True)
class Problem:
    """One call's inputs, all without gradient.

    Attributes:
        hidden: [T, H_s].
        head: [V_true_local, H_s], the true rows of the student's shard.
        labels: [T] global ids; read at `tokens` only.
        tokens: [N] int64: positions of the valid tokens.
        teacher: None for plain cross-entropy.
        terms: weights and divergence.
        rows: the ids behind the head's rows.
        group: ranks that share the vocabulary.
        chunk_tokens: tokens a chunk; the same on every rank of the group.
        kernels: who does the element-wise part.
    """

    hidden: Tensor
    head: Tensor
    labels: Tensor
    tokens: Tensor
    teacher: Teacher | None
    terms: Terms
    rows: VocabRows
    group: ProcessGroup | None
    chunk_tokens: int
    kernels: Kernels = "torch"

    @property
    def acc(self) -> torch.dtype:
        """Type of everything element-wise."""
        return accumulation_type(self.hidden, self.head)

    @property
    def dense(self) -> DenseTeacher | None:
        """The teacher, if it has logits."""
        return self.teacher if isinstance(self.teacher, DenseTeacher) else None

    @property
    def values_are_whole(self) -> bool:
        """Whether a tile's response values are already summed over the group."""
        sparse = self.teacher is not None and self.dense is None
        return sparse or self.terms.divergence.sum_g is None


@dataclass(frozen=True)
class Chunk:
    """One chunk's logits, labels and normalisers over the whole vocabulary.

    Attributes:
        tokens: [c], their positions.
        z_s: [c, V_local]; in the end the gradient of the logits.
        z_t: [c, V_local] or None.
        ids: [c], the labels' row numbers on this rank, out of range elsewhere.
        max_s, max_t: [c], the maximum m of the logits.
        log_z_ce: [c], log sum exp(z_s - m).
        log_z_s, log_z_t: [c], log sum exp((z - m) / T).
        label: [c], the label's logit less m.
    """

    tokens: Tensor
    z_s: Tensor
    z_t: Tensor | None
    ids: Tensor
    max_s: Tensor
    log_z_ce: Tensor
    log_z_s: Tensor
    max_t: Tensor
    log_z_t: Tensor
    label: Tensor


@dataclass(frozen=True)
class ElementWise:
    """One implementation of what is done to every logit of a chunk.

    Attributes:
        max_and_sums: (problem, z [c, V_local], temperatures) -> this rank's maximum [c] (-inf
            without rows) and for each T its sums of exp((z - max) / T) [c].
        to_gradient: (problem, chunk, want_gradient) -> the response term, a float64 scalar; turns
            chunk.z_s into its gradient if wanted.
    """

    max_and_sums: Callable[[Problem, Tensor, list[float]], tuple[Tensor, list[Tensor]]]
    to_gradient: Callable[[Problem, Chunk, bool], Tensor]


def accumulation_type(*tensors: Tensor) -> torch.dtype:
    """float64 where an input is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def make_chunk(
    p: Problem, part: ElementWise, tokens: Tensor, z_s: Tensor, z_t: Tensor | None
) -> Chunk:
    """Make the normalisers over the whole vocabulary: one maximum, one sum over the group."""
    temperature = p.terms.temperature
    ids = p.labels.index_select(0, tokens) - p.rows.start
    scales = [1.0] if p.teacher is None or temperature == 1.0 else [1.0, temperature]
    owner = [0] * len(scales)
    top_s, sums = part.max_and_sums(p, z_s, scales)
    tops = [top_s]
    if z_t is not None:
        top_t, sums_t = part.max_and_sums(p, z_t, [temperature])
        tops, sums = [top_s, top_t], [*sums, *sums_t]
        scales, owner = [*scales, temperature], [*owner, 1]
    maxima = max_over(torch.stack(tops), p.group)
    rescaled = [
        local * torch.exp((tops[i] - maxima[i]) / t)
        for local, i, t in zip(sums, owner, scales, strict=True)
    ]
    reduced = sum_over(torch.stack([*rescaled, _label_logit(p, z_s, ids, maxima[0])]), p.group)
    log_z = reduced[:-1].log()
    return Chunk(
        tokens=tokens,
        z_s=z_s,
        z_t=z_t,
        ids=ids,
        max_s=maxima[0],
        log_z_ce=log_z[0],
        log_z_s=log_z[owner.count(0) - 1],
        max_t=maxima[-1],
        log_z_t=log_z[-1],
        label=reduced[-1],
    )


def owned(ids: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Mask of the labels whose row this rank holds, and row numbers safe to read [c]."""
    mine = (ids >= 0) & (ids < num_rows)
    return mine, ids.clamp(0, max(0, num_rows - 1))


def _label_logit(p: Problem, z_s: Tensor, ids: Tensor, max_s: Tensor) -> Tensor:
    """The label's logit less the maximum [c]; 0 where another rank holds the label."""
    if p.rows.num == 0:
        return torch.zeros_like(max_s)
    mine, safe = owned(ids, p.rows.num)
    logit = z_s.gather(1, safe[:, None]).squeeze(1).to(max_s.dtype) - max_s
    return torch.where(mine, logit, 0.0)
