"""The pieces that payloads are made of: packed bits, byte planes, quantised logarithms, zstd."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ekd_nemo.errors import DataError

# Range of -log p that each width covers, in nats; what is less probable is stored at its end.
LOG_RANGE_NATS = {8: 16.0, 16: 32.0}


def pack_bits(values: NDArray[Any], width: int) -> bytes:
    """The low `width` bits of each value: whole bytes as planes, the bits above them packed.

    Args:
        values: [n] integers in 0..2^width-1.
        width: 0 to 32.
    """
    whole = width // 8
    parts = [np.asarray(values >> (8 * plane), np.uint8).tobytes() for plane in range(whole)]
    for bit in range(8 * whole, width):
        parts.append(np.packbits(((values >> bit) & 1).astype(np.uint8)).tobytes())
    return b"".join(parts)


def packed_size(count: int, width: int) -> int:
    """Bytes that `pack_bits` makes of `count` values."""
    return count * (width // 8) + (width % 8) * ((count + 7) // 8)


def unpack_bits(data: memoryview, count: int, width: int) -> NDArray[np.int64]:
    """The inverse of `pack_bits`: [count]."""
    out = np.zeros(count, np.int64)
    whole, offset = width // 8, 0
    for plane in range(whole):
        out |= np.frombuffer(data, np.uint8, count, offset).astype(np.int64) << (8 * plane)
        offset += count
    size = (count + 7) // 8
    for bit in range(8 * whole, width):
        bits = np.unpackbits(np.frombuffer(data, np.uint8, size, offset), count=count)
        out |= bits.astype(np.int64) << bit
        offset += size
    return out


def planes(values: NDArray[Any]) -> bytes:
    """All first bytes, then all second ones and so on: exponents beside exponents compress."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return np.ascontiguousarray(flat.view(np.uint8).reshape(len(flat), flat.itemsize).T).tobytes()


def from_planes(data: memoryview, dtype: Any, count: int) -> NDArray[Any]:
    """The inverse of `planes`: [count] of a little-endian type."""
    size = np.dtype(dtype).itemsize
    stacked = np.frombuffer(data, np.uint8, count * size).reshape(size, count)
    return np.ascontiguousarray(stacked.T).reshape(-1).view(dtype)


def quantised_log(probabilities: NDArray[np.floating[Any]], bits: int) -> NDArray[np.uint16]:
    """-log p in even steps: 0.063 nats with 8 bits, 0.0005 with 16."""
    top = 2**bits - 1
    floor = np.exp(-LOG_RANGE_NATS[bits])
    scaled = -np.log(np.clip(probabilities, floor, 1.0)) * (top / LOG_RANGE_NATS[bits])
    return np.rint(scaled).astype(np.uint16)


def log_of(codes: NDArray[Any], bits: int) -> NDArray[np.float32]:
    """The logarithms that `quantised_log` stands for, in nats."""
    return codes.astype(np.float32) * np.float32(-LOG_RANGE_NATS[bits] / (2**bits - 1))


def squeeze(parts: Sequence[bytes], level: int) -> bytes:
    """One payload of several parts: their sizes, then each compressed unless `level` is 0."""
    codec = pa.Codec("zstd", compression_level=level) if level else None
    stored = [part if codec is None else codec.compress(part, asbytes=True) for part in parts]
    sizes = [number for a, b in zip(parts, stored, strict=True) for number in (len(a), len(b))]
    return struct.pack(f"<I{len(sizes)}Q", len(parts), *sizes) + b"".join(stored)


def part_of(payload: memoryview, index: int, level: int) -> memoryview:
    """One part of a payload; the others are left as they are.

    Raises:
        DataError: no payload of ours.
    """
    try:
        (count,) = struct.unpack_from("<I", payload)
        sizes = struct.unpack_from(f"<{2 * count}Q", payload, 4)
        start = 4 + 16 * count + sum(sizes[1 : 2 * index : 2])
        stored = payload[start : start + sizes[2 * index + 1]]
        if not level:
            return stored
        plain = pa.decompress(stored, sizes[2 * index], codec="zstd")
    except (struct.error, IndexError, OSError, ValueError) as error:
        raise DataError(f"part {index} cannot be read ({error})") from error
    return memoryview(plain)
