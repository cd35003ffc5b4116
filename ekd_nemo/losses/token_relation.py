"""Relations between tokens inside one sequence: exact in one pass, on any cut of the batch."""

from typing import cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ekd_nemo.errors import DataError
from ekd_nemo.losses.collectives import gather_rows_with_gradient
from ekd_nemo.losses.parts import LossParts
from ekd_nemo.losses.relation import RelationSettings, relation_sum


def token_relation_loss(
    student: Tensor,
    teacher: Tensor,
    segments: Tensor,
    keep: Tensor,
    settings: RelationSettings,
    *,
    scale: float | Tensor = 1.0,
    sequence_group: ProcessGroup | None = None,
) -> LossParts:
    """Sum over segments of the relation between their kept tokens.

    Args:
        student: [T, H_s].
        teacher: [T, H_t], no gradient.
        segments: [T] int64, -1 for padding; a number must not come back in another sample.
        keep: [T] bool: the tokens that take part (`token_subset` keeps their number bounded).
        settings: the relation; each segment has its own mean distance and its own triplets.
        scale: multiplies the total, not the sum.
        sequence_group: ranks that hold other tokens of the same sequences.

    Returns:
        The sum under "token_" + `settings.name` and the number of pairs or triplets, whole on
        every rank; segments with too few tokens for one pair or triplet add nothing to either.

    Collectives: with `sequence_group`, the kept rows and their segments are gathered.

    Raises:
        DataError: unlike numbers of tokens.

    Source: as `relation_loss`; tokens in place of samples.
    """
    lengths = {len(student), len(teacher), len(segments), len(keep)}
    if len(lengths) > 1:
        raise DataError(
            f"token relation: {len(student)} student and {len(teacher)} teacher tokens, "
            f"{len(segments)} segments, {len(keep)} keep flags; accepted: equal numbers"
        )
    index = (keep & (segments >= 0)).nonzero().squeeze(1)
    ours, _ = gather_rows_with_gradient(student.index_select(0, index), sequence_group)
    theirs, _ = gather_rows_with_gradient(teacher.detach().index_select(0, index), sequence_group)
    where, _ = gather_rows_with_gradient(segments.index_select(0, index), sequence_group)
    total, count = ours[:0].double().sum(), 0
    for segment in cast(list[int], where.unique().tolist()):
        rows = (where == segment).nonzero().squeeze(1)
        value, num = relation_sum(
            ours.index_select(0, rows), theirs.index_select(0, rows), settings
        )
        total, count = total + value, count + num
    sums = {f"token_{settings.name}": total.detach().double()}
    return LossParts(total * scale, sums, torch.tensor(count, device=student.device))
