"""Payloads of the sparse kinds: a few ids a token with their probabilities, or their draws.

Ids of a token stand in ascending order. Of an id of b bits the low b - 8 are packed; the high 8 are
stored as differences along the token's ids, bytes that zstd brings to two or three bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekd_nemo.sources.cache_manifest import CacheIdentity
from ekd_nemo.teacher.cache.pieces import (
    from_planes,
    log_of,
    pack_bits,
    part_of,
    planes,
    quantised_log,
    squeeze,
    unpack_bits,
)

TAIL_STEPS = 65535
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Ragged:
    """Entries of n tokens, token after token.

    Attributes:
        counts: [n], entries of each token.
        ids: [E] int64, ascending within a token.
        probabilities: [E], the teacher's.
        draws: [E], how often an id was drawn; None for top-k.
        tail: [n], mass of the ids left out; None for draws.
    """

    counts: Ints
    ids: Ints
    probabilities: NDArray[Any]
    draws: Ints | None = None
    tail: NDArray[Any] | None = None


@dataclass(frozen=True)
class SparseRows:
    """Entries of n tokens as rows of the longest one's length; id -1: no entry.

    Attributes:
        ids: [n, k] int64.
        log_probs: [n, k] float32; 0 where there is no entry.
        draws: [n, k] int64 or None.
        tail: [n] float32 or None.
    """

    ids: Ints
    log_probs: Floats
    draws: Ints | None = None
    tail: Floats | None = None


def joined(parts: Sequence[Ragged]) -> Ragged:
    """Consecutive tokens as one."""
    draws = [part.draws for part in parts if part.draws is not None]
    tail = [part.tail for part in parts if part.tail is not None]
    return Ragged(
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate(draws) if draws else None,
        np.concatenate(tail) if tail else None,
    )


def encode_sparse(entries: Ragged, identity: CacheIdentity) -> bytes:
    """One sample's payload."""
    bits = identity.probability_bits
    assert bits is not None
    width = _low_width(identity.vocab_size)
    high = entries.ids >> width
    steps = np.diff(high, prepend=0)
    starts = _starts(entries.counts)
    steps[starts] = high[starts]
    parts = [
        planes(entries.counts.astype(_count_type(identity))),
        pack_bits(entries.ids, width),
        steps.astype(np.uint8).tobytes(),
        _codes(quantised_log(entries.probabilities, bits), bits),
    ]
    if entries.draws is not None:
        parts.append(planes(entries.draws.astype(_count_type(identity))))
    if entries.tail is not None:
        parts.append(planes(np.rint(np.clip(entries.tail, 0, 1) * TAIL_STEPS).astype("<u2")))
    return squeeze(parts, identity.zstd_level)


def decode_sparse(payload: memoryview, identity: CacheIdentity) -> SparseRows:
    """The rows of one sample; probabilities of a token and its tail add up to 1 again.

    Raises:
        DataError: the payload is none of ours.
    """
    bits, level = identity.probability_bits, identity.zstd_level
    assert bits is not None
    stored, count_type = part_of(payload, 0, level), _count_type(identity)
    num_tokens = len(stored) // np.dtype(count_type).itemsize
    counts = from_planes(stored, count_type, num_tokens).astype(np.int64)
    total = int(counts.sum())
    width = _low_width(identity.vocab_size)
    ids = _running(np.frombuffer(part_of(payload, 2, level), np.uint8, total), counts) << width
    ids |= unpack_bits(part_of(payload, 1, level), total, width)
    logs = log_of(from_planes(part_of(payload, 3, level), f"<u{bits // 8}", total), bits)
    extra = part_of(payload, 4, level)
    rows = _Rows(counts)
    if identity.kind == "sampled":
        draws = from_planes(extra, count_type, total).astype(np.int64)
        return SparseRows(rows.of(ids, -1), rows.of(logs, 0.0), draws=rows.of(draws, 0))
    tail = from_planes(extra, "<u2", num_tokens).astype(np.float32) / np.float32(TAIL_STEPS)
    log_probs = rows.of(logs, -np.inf)
    mass = np.exp(log_probs).sum(1, keepdims=True)
    log_probs += np.log(np.maximum(1 - tail[:, None], np.float32(1 / TAIL_STEPS))) - np.log(mass)
    return SparseRows(
        rows.of(ids, -1), np.where(np.isinf(log_probs), np.float32(0), log_probs), tail=tail
    )


class _Rows:
    """Scatters ragged entries into rows."""

    def __init__(self, counts: Ints) -> None:
        self._shape = (len(counts), int(counts.max(initial=0)))
        self._mask = np.arange(self._shape[1]) < counts[:, None]

    def of(self, values: NDArray[Any], fill: float) -> NDArray[Any]:
        out = np.full(self._shape, fill, values.dtype)
        out[self._mask] = values
        return out


def _codes(codes: NDArray[np.uint16], bits: int) -> bytes:
    return planes(codes.astype("<u2") if bits == 16 else codes.astype(np.uint8))


def _count_type(identity: CacheIdentity) -> str:
    """What holds the number of a token's entries, and of an id's draws."""
    most = identity.samples if identity.kind == "sampled" else identity.k
    assert most is not None
    return "<u2" if most <= np.iinfo(np.uint16).max else "<u4"


def _low_width(vocab_size: int) -> int:
    """Bits of an id that are packed; the 8 above them are stored as differences."""
    return max(0, (vocab_size - 1).bit_length() - 8)


def _starts(counts: Ints) -> Ints:
    """Place of each token's first entry; every token has one."""
    return np.cumsum(counts) - counts


def _running(steps: NDArray[np.uint8], counts: Ints) -> Ints:
    """Sums of the differences along each token."""
    sums = np.cumsum(steps, dtype=np.int64)
    starts = _starts(counts)
    before = np.where(starts > 0, sums[starts - 1], 0)
    return sums - np.repeat(before, counts)
