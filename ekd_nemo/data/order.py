"""The order in which samples are trained on: a function of seed, step and global batch size alone.

Neither the number of data-parallel ranks nor the microbatch size changes which samples a step
holds, and a run resumes from the count of consumed samples. Only the raw stream of numpy's PCG64 is
used, which numpy keeps stable over releases.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ekd_nemo.config.recipe import Train


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


def step_microbatches(
    num_samples: int, seed: int, step: int, train: Train, dp_rank: int, dp_size: int
) -> list[list[int]]:
    """The samples of a data-parallel rank's microbatches in training step `step`, from 0."""
    size = train.global_batch_size
    batch = samples_at(num_samples, seed, step * size, size)
    return rank_microbatches(batch, dp_rank, dp_size, train.micro_batch_size).tolist()


def held_out_passes(
    num_samples: int, train: Train, at_once: int, dp_rank: int, dp_size: int
) -> list[list[list[int]]]:
    """The samples of a data-parallel rank's microbatches in each pass of a validation.

    The first samples, always the same, are dealt to the ranks in turn; those that do not fill a
    microbatch of every rank, and microbatches that do not fill a pass, are left out.

    Args:
        num_samples: of the split; `train.val_samples` at most are taken.
        train: sizes.
        at_once: microbatches of a pass.
        dp_rank: this rank's position.
        dp_size: number of data-parallel ranks.
    """
    size = train.micro_batch_size
    count = min(train.val_samples, num_samples) // (size * dp_size)
    starts = [(turn * dp_size + dp_rank) * size for turn in range(count)]
    rounds = [list(range(start, start + size)) for start in starts]
    return [rounds[i : i + at_once] for i in range(0, count - at_once + 1, at_once)]
