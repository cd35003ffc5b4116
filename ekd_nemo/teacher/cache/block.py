"""One file of a cache: an Arrow file of one record batch, a row for each sample.

Columns: `sample` (16 bytes), `tokens`, `checksum` (xxh3 over sample, tokens and payload) and
`payload`. Every byte of the file is covered: payloads by their rows' checksums, which are read with
the row, the rest by one checksum, which is read once when the file is opened.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from ekd_nemo.errors import DataError
from ekd_nemo.sources.cache_manifest import BLOCKS, Block

SCHEMA = pa.schema(
    [
        pa.field("sample", pa.binary(16), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("checksum", pa.uint64(), nullable=False),
        pa.field("payload", pa.large_binary(), nullable=False),
    ]
)
PARTIAL = ".partial-"


@dataclass(frozen=True)
class Row:
    """One sample of a block."""

    sample: str
    tokens: int
    payload: bytes


def block_name(number: int) -> str:
    """The file of block `number`, relative to the cache."""
    return f"{BLOCKS}/block-{number:08d}.arrow"


def write_block(folder: Path, number: int, rows: Sequence[Row]) -> None:
    """Write one block; it appears whole or not at all."""
    path = folder / block_name(number)
    columns: list[Any] = [
        pa.array([bytes.fromhex(row.sample) for row in rows], pa.binary(16)),
        pa.array([row.tokens for row in rows], pa.int32()),
        pa.array([row_checksum(row.sample, row.tokens, row.payload) for row in rows], pa.uint64()),
        pa.array([row.payload for row in rows], pa.large_binary()),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    partial = path.with_name(f".{path.name}{PARTIAL}{os.getpid()}")
    try:
        with partial.open("wb") as stream:
            with pa.ipc.new_file(stream, SCHEMA) as writer:
                writer.write_batch(batch)
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def row_checksum(sample: str, tokens: int, payload: Any) -> int:
    """64-bit xxh3 over what a row says."""
    digest = xxhash.xxh3_64(bytes.fromhex(sample))
    digest.update(struct.pack("<q", tokens))
    digest.update(payload)
    return digest.intdigest()


class OpenBlock:
    """A memory-mapped block."""

    def __init__(self, folder: Path, number: int, expected: Block | None = None) -> None:
        """Map the file and check all of it but the payloads.

        Args:
            folder: the cache.
            number: of the block.
            expected: what the manifest says; None while building.

        Raises:
            DataError: missing, of another size, damaged.
        """
        self.path = folder / block_name(number)
        try:
            self._file: Any = pa.memory_map(str(self.path))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be opened ({error})") from error
        self._whole: Any = self._file.read_buffer()
        if expected is not None:
            self._check_frame(expected)
        try:
            reader = pa.ipc.open_file(pa.BufferReader(self._whole))
            batch = reader.get_batch(0)
            batch.validate(full=True)
            self.samples: list[str] = [value.hex() for value in batch["sample"].to_pylist()]
            self.tokens: list[int] = batch["tokens"].to_pylist()
            self._checksums: list[int] = batch["checksum"].to_pylist()
            self._payload: Any = batch["payload"]
            values = self._payload.buffers()[2]
        except (pa.ArrowException, IndexError, KeyError, OSError) as error:
            raise DataError(
                f"{self.path}: damaged, it cannot be read as a block ({error})"
            ) from error
        self.payload_start = 0 if values is None else values.address - self._whole.address
        offsets = memoryview(self._payload.buffers()[1]).cast("q")
        self._offsets = offsets[: len(self.samples) + 1]
        self.payload_bytes = self._offsets[-1]

    def payload(self, row: int) -> memoryview:
        """The payload of a row, once its checksum holds.

        Raises:
            DataError: damaged.
        """
        start = self.payload_start + self._offsets[row]
        found = memoryview(self._whole)[start : self.payload_start + self._offsets[row + 1]]
        if row_checksum(self.samples[row], self.tokens[row], found) != self._checksums[row]:
            raise DataError(
                f"{self.path}: damaged, the checksum of row {row} (sample {self.samples[row]}) "
                "does not hold"
            )
        return found

    def describe(self) -> Block:
        """What the manifest says of this file, computed from its bytes."""
        return Block(
            file=f"{BLOCKS}/{self.path.name}",
            samples=len(self.samples),
            tokens=sum(self.tokens),
            bytes=self._whole.size,
            checksum=xxhash.xxh3_64_hexdigest(self._whole),
            frame_checksum=self._frame(self.payload_start, self.payload_bytes),
            payload_start=self.payload_start,
            payload_bytes=self.payload_bytes,
        )

    def _frame(self, start: int, size: int) -> str:
        view = memoryview(self._whole)
        digest = xxhash.xxh3_64(view[:start])
        digest.update(view[start + size :])
        return digest.hexdigest()

    def _check_frame(self, expected: Block) -> None:
        if self._whole.size != expected.bytes:
            raise DataError(
                f"{self.path}: damaged, it has {self._whole.size} bytes, the manifest says "
                f"{expected.bytes}"
            )
        if self._frame(expected.payload_start, expected.payload_bytes) != expected.frame_checksum:
            raise DataError(f"{self.path}: damaged, the checksum of its rows' table does not hold")
