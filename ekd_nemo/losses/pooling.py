"""One embedding a sequence, also where several sequences are packed into one sample."""

from typing import Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ekd_nemo.errors import ConfigError
from ekd_nemo.losses.chunk import accumulation_type
from ekd_nemo.losses.collectives import max_over, sum_over, sum_over_with_gradient

PoolingKind = Literal["mean", "last", "masked"]
POOLINGS = ("mean", "last", "masked")


def pool(
    hidden: Tensor,
    segments: Tensor,
    num_segments: int,
    *,
    kind: PoolingKind = "mean",
    mask: Tensor | None = None,
    first_position: int = 0,
    sequence_group: ProcessGroup | None = None,
) -> Tensor:
    """Pool hidden states into one embedding a segment.

    mean: over all tokens of the segment. masked: over those where `mask` holds. last: the
    segment's last token. A segment without such a token gives a zero row and no gradient.

    Args:
        hidden: [T, H].
        segments: [T] int64 in 0..num_segments-1, or -1 for padding; a number must not come back in
            another sample of the batch.
        num_segments: rows of the result; the same on every rank of `sequence_group`.
        kind: of pooling.
        mask: [T] bool, read by "masked".
        first_position: place of this rank's first token in the sequence, if it is cut over ranks.
        sequence_group: ranks that hold other tokens of the same sequences.

    Returns:
        [num_segments, H] in float32 (float64 for float64), whole on every rank of the group; the
        gradient reaches this rank's tokens.

    Collectives: with `sequence_group`, a sum of [S, H] and of [S] floats; for "last" a maximum of
        [S] numbers more.

    Raises:
        ConfigError: an unknown kind, or "masked" without a mask.
    """
    if kind not in POOLINGS:
        raise ConfigError(f"pooling is {kind!r}; accepted: {', '.join(POOLINGS)}")
    take = segments >= 0
    if kind == "masked":
        if mask is None:
            raise ConfigError("pooling is masked, but no mask is given")
        take = take & mask
    elif kind == "last":
        take = take & _is_last(segments, num_segments, first_position, sequence_group)
    index = take.nonzero().squeeze(1)
    rows = segments.index_select(0, index)
    chosen = hidden.index_select(0, index).to(accumulation_type(hidden))
    sums = chosen.new_zeros((num_segments, hidden.shape[1])).index_add(0, rows, chosen)
    counts = torch.bincount(rows, minlength=num_segments).to(chosen.dtype)
    sums = sum_over_with_gradient(sums, sequence_group)
    return sums / sum_over(counts, sequence_group).clamp(min=1.0)[:, None]


def _is_last(
    segments: Tensor, num_segments: int, first_position: int, group: ProcessGroup | None
) -> Tensor:
    """Mask [T] of the last token of each segment over all shards."""
    places = torch.arange(len(segments), device=segments.device) + first_position
    real = segments >= 0
    last = torch.full((num_segments,), -1, dtype=torch.int64, device=segments.device)
    last.scatter_reduce_(0, segments[real], places[real], "amax")
    max_over(last, group)
    return real & (places == last[segments.clamp(min=0)])
