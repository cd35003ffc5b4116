"""Which tokens of a microbatch take part in a loss, and in which order ranks hold them."""

import torch
from torch import Tensor

from ekd_nemo.losses.subset import token_subset
from ekd_nemo.parallel.batch import Microbatch


def subset_mask(batch: Microbatch, seed: int, ratio: float) -> Tensor:
    """[S * B] bool in the order of `Microbatch.flat_labels`: tokens that carry loss, thinned out.

    Args:
        batch: the microbatch.
        seed: of the run; the rest of the draw depends on the samples and the places in them.
        ratio: of tokens to keep.
    """
    if ratio >= 1.0:
        return batch.flat_valid
    places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    rows = [token_subset(seed, each, places, ratio) for each in batch.sample_hashes]
    return batch.flat_valid & torch.stack(rows, dim=1).reshape(-1)


def bounded_mask(batch: Microbatch, seed: int, per_segment: int) -> Tensor:
    """[S * B] bool: tokens of every segment, about `per_segment` of those that have more."""
    numbers = batch.flat_segments
    real = numbers >= 0
    lengths = torch.bincount(numbers[real], minlength=batch.num_segments)
    ratio = torch.where(real, per_segment / lengths[numbers.clamp(min=0)], 0.0).clamp(max=1.0)
    ratio = ratio.reshape(-1, len(batch.sample_hashes))
    places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    rows = [
        token_subset(seed, each, places, ratio[:, row])
        for row, each in enumerate(batch.sample_hashes)
    ]
    return real & torch.stack(rows, dim=1).reshape(-1)


def own_tokens(flat: Tensor, rank: int, size: int) -> Tensor:
    """The part of a [S * B] tensor whose tokens this rank holds under sequence parallelism."""
    part = len(flat) // size
    return flat[rank * part : (rank + 1) * part]
