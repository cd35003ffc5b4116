"""The order in which samples are trained on: a function of seed, step and global batch size alone.

Neither the number of data-parallel ranks nor the microbatch size changes which samples a step
holds, and a run resumes from the count of consumed samples. Only the raw stream of numpy's PCG64 is
used, which numpy keeps stable over releases.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=2)
def sample_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of an epoch: [num_samples] int64, read-only."""
    raw = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(num_samples)
    order = np.argsort(np.asarray(raw, np.uint64), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def samples_at(num_samples: int, seed: int, start: int, count: int) -> NDArray[np.int64]:
    """A stretch of the endless stream of shuffled samples, epoch after epoch.

    Args:
        num_samples: size of the data set, at least 1.
        seed: the run's seed.
        start: samples consumed so far; step k of a global batch of b starts at k * b.
        count: how many samples, usually the global batch size; may reach over the end of an epoch.

    Returns:
        [count] int64 indices into the data set.
    """
    if num_samples < 1:
        raise ValueError("num_samples must be at least 1")
    pieces: list[NDArray[np.int64]] = []
    while count > 0:
        epoch, offset = divmod(start, num_samples)
        piece = sample_order(num_samples, seed, epoch)[offset : offset + count]
        pieces.append(piece)
        start, count = start + len(piece), count - len(piece)
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def rank_microbatches(
    batch: NDArray[np.int64], dp_rank: int, dp_size: int, micro_batch_size: int
) -> NDArray[np.int64]:
    """The share of one data-parallel rank in a global batch.

    Args:
        batch: [b] sample indices; b a multiple of `dp_size * micro_batch_size`.
        dp_rank: this rank's position.
        dp_size: number of data-parallel ranks.
        micro_batch_size: samples of one forward pass.

    Returns:
        [b / (dp_size * micro_batch_size), micro_batch_size]; over all ranks every sample once.
    """
    share = dp_size * micro_batch_size
    if len(batch) % share:
        raise ValueError(
            f"a global batch of {len(batch)} samples is not a multiple of "
            f"dp_size {dp_size} * micro_batch_size {micro_batch_size}"
        )
    return batch.reshape(-1, dp_size, micro_batch_size)[:, dp_rank]
