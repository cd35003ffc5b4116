"""A random subset of tokens that depends on what the tokens are, never on when they are seen."""

import hashlib

import torch
from torch import Tensor

from ekd_nemo.errors import ConfigError

# splitmix64 (Steele, Lea, Flood 2014), as signed 64-bit numbers: torch has no unsigned arithmetic.
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_BITS = 53


def token_subset(seed: int, sample_hash: str, positions: Tensor, ratio: float | Tensor) -> Tensor:
    """Keep each token with probability `ratio`, a function of (seed, sample, position) alone.

    Tokens are drawn independently, so that the choice does not depend on how a sequence is cut
    into shards; the number kept varies around ratio * T.

    Args:
        seed: of the run.
        sample_hash: the sample's content hash.
        positions: [T] int64, places in the packed sample (not in its segments).
        ratio: 0 < ratio <= 1; a tensor [T] gives each token its own, and is not checked.

    Returns:
        [T] bool.

    Raises:
        ConfigError: a ratio out of range.
    """
    if not isinstance(ratio, Tensor) and not 0 < ratio <= 1:
        raise ConfigError(f"token subset ratio is {ratio}; it must be above 0 and at most 1")
    draws = _mix(positions.to(torch.int64) * _INCREMENT + _start(seed, sample_hash))
    uniform = (draws & ((1 << _BITS) - 1)).to(torch.float64) / (1 << _BITS)
    return uniform < ratio


def _start(seed: int, sample_hash: str) -> int:
    digest = hashlib.sha256(f"{seed}:{sample_hash}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without dragging the sign along."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
