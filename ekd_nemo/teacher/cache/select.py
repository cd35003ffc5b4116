"""Which ids of a token's distribution a sparse cache keeps."""

from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ekd_nemo.sources.cache_manifest import CacheIdentity
from ekd_nemo.teacher.cache.sparse_codec import Ragged

_UNIT = 2.0**-53  # PCG and Philox give 64 bits; a float64 between 0 and 1 takes 53 of them


def select(logits: Tensor, identity: CacheIdentity, offsets: NDArray[np.float64]) -> Ragged:
    """What is kept of some tokens.

    Args:
        logits: [n, V] of the true vocabulary, not yet divided by the temperature.
        identity: kind and settings.
        offsets: [n] of `offsets_of`, read for sampled.
    """
    assert identity.temperature is not None
    probabilities = torch.softmax(logits.double() / identity.temperature, dim=-1)
    if identity.kind == "topk":
        return _top(probabilities, identity)
    assert identity.samples is not None
    return _drawn(probabilities, identity.samples, offsets)


def offsets_of(seed: int, sample_hash: str, num_tokens: int) -> NDArray[np.float64]:
    """[num_tokens] in [0, 1): a function of seed, sample and position alone.

    Only the raw stream of numpy's Philox is used, which numpy keeps stable over releases.
    """
    digest = blake2b(f"{seed} {sample_hash}".encode(), digest_size=16, person=b"ekd-draws")
    key = np.frombuffer(digest.digest(), "<u8")
    raw = np.random.Philox(key=key).random_raw(num_tokens)
    return (np.asarray(raw, np.uint64) >> np.uint64(11)).astype(np.float64) * _UNIT


def _top(probabilities: Tensor, identity: CacheIdentity) -> Ragged:
    """The k likeliest ids that are not below the floor, and always the likeliest."""
    assert identity.k is not None
    assert identity.min_probability is not None
    values, ids = probabilities.topk(min(identity.k, probabilities.shape[1]), dim=-1)
    kept = values >= identity.min_probability
    kept[:, 0] = True
    tail = 1 - torch.where(kept, values, 0.0).sum(-1)
    ids, order = torch.where(kept, ids, torch.iinfo(torch.int64).max).sort(dim=-1)
    values, kept = values.gather(1, order), kept.gather(1, order)
    return Ragged(
        kept.sum(-1).cpu().numpy(),
        ids[kept].cpu().numpy(),
        values[kept].cpu().numpy(),
        tail=tail.clamp(min=0).cpu().numpy(),
    )


def _drawn(probabilities: Tensor, samples: int, offsets: NDArray[np.float64]) -> Ragged:
    """Systematic draws: `samples` even places of the cumulated distribution, moved by one offset.

    An id of probability p is drawn floor(samples * p) or one more times, samples * p on average:
    unbiased as independent draws are, with less variance.
    Source: Anshumann et al. 2025, arXiv:2503.16870, section 3, which draws independently.
    """
    ends = probabilities.cumsum(-1)
    ends = ends / ends[:, -1:]
    start = torch.from_numpy(offsets).to(ends)[:, None]
    # Places (i + offset) / samples that lie below each end.
    below = (ends * samples - start).ceil().clamp(0, samples).long()
    below[:, -1] = samples
    draws = below.diff(dim=-1, prepend=below.new_zeros(len(below), 1))
    kept = draws > 0
    ids = torch.arange(ends.shape[1], device=ends.device).expand_as(draws)
    return Ragged(
        kept.sum(-1).cpu().numpy(),
        ids[kept].cpu().numpy(),
        probabilities[kept].cpu().numpy(),
        draws=draws[kept].cpu().numpy(),
    )
