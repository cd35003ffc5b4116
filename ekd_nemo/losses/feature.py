"""Feature distillation: hidden states of one (teacher layer, student layer) pair."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ekd_nemo.errors import ConfigError, LayoutError
from ekd_nemo.losses.chunk import accumulation_type
from ekd_nemo.losses.collectives import sum_over, sum_over_with_gradient
from ekd_nemo.losses.parts import LossParts

FeatureKind = Literal["mse", "cosine"]


def feature_loss(
    student: Tensor,
    teacher: Tensor,
    keep: Tensor | None = None,
    *,
    kind: FeatureKind = "mse",
    scale: float | Tensor = 1.0,
    sequence_group: ProcessGroup | None = None,
) -> LossParts:
    """Sum over kept tokens of the distance between two hidden states.

    mse: mean over the hidden width of the squared difference. cosine: 1 - cosine similarity.

    Args:
        student: [T, H], already projected to the teacher's width if widths differ.
        teacher: [T, H], no gradient.
        keep: [T] bool: valid tokens of the subset; others contribute exactly 0. None: all.
        kind: "mse" or "cosine".
        scale: multiplies the total (weight, loss scale), not the sums.
        sequence_group: ranks that hold other tokens of the same sequences (sequence parallelism);
            None where every rank has all tokens, also if a tensor-parallel group shares the rest.

    Returns:
        Sum "feature_mse" or "feature_cosine" and the number of kept tokens, both over
        `sequence_group`; the gradient of the total is this rank's own tokens' part.

    Collectives: with `sequence_group`, one sum of two floats.

    Note: a projector's gradient is, under sequence parallelism, that of this rank's tokens; sum it
        over `sequence_group` (Megatron does for parameters marked `sequence_parallel`).

    Raises:
        ConfigError: an unknown kind.
        LayoutError: shapes that differ.

    Source: Romero et al. 2014 (FitNets), arXiv:1412.6550, section 2.2.
    """
    if kind not in _DISTANCES:
        raise ConfigError(f"feature kind is {kind!r}; accepted: {', '.join(_DISTANCES)}")
    if student.shape != teacher.shape:
        raise LayoutError(
            f"student features {tuple(student.shape)}, teacher features {tuple(teacher.shape)}; "
            "widths must be equal, or a projector must make them so"
        )
    teacher = teacher.detach()
    if keep is not None:
        index = keep.nonzero().squeeze(1)
        student, teacher = student.index_select(0, index), teacher.index_select(0, index)
    acc = accumulation_type(student, teacher)
    local = _DISTANCES[kind](student.to(acc), teacher.to(acc)).sum()
    total = sum_over_with_gradient(local, sequence_group)
    count = sum_over(torch.tensor(len(student), device=student.device), sequence_group)
    return LossParts(total * scale, {f"feature_{kind}": total.detach().double()}, count)


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    return (student - teacher).square().mean(-1)


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return 1.0 - torch.cosine_similarity(student, teacher, dim=-1)


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": _mse, "cosine": _cosine}
