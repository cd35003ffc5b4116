"""Where each sample of a cache lies: one Arrow file, sorted by sample, memory-mapped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from ekd_nemo.errors import DataError
from ekd_nemo.records.atomic import write_bytes
from ekd_nemo.sources.cache_manifest import INDEX

SCHEMA = pa.schema(
    [
        pa.field("high", pa.uint64(), nullable=False),  # first 8 bytes of the sample's hash
        pa.field("low", pa.uint64(), nullable=False),  # last 8
        pa.field("block", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)


def write_index(folder: Path, blocks: Sequence[Sequence[str]]) -> str:
    """Write the index of the samples of all blocks, in order; returns its checksum."""
    places = sorted(
        (sample, number, row)
        for number, samples in enumerate(blocks)
        for row, sample in enumerate(samples)
    )
    columns: list[Any] = [
        pa.array([int(sample[:16], 16) for sample, _, _ in places], pa.uint64()),
        pa.array([int(sample[16:], 16) for sample, _, _ in places], pa.uint64()),
        pa.array([number for _, number, _ in places], pa.int32()),
        pa.array([row for _, _, row in places], pa.int32()),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    content: Any = sink.getvalue()
    write_bytes(folder / INDEX, content.to_pybytes())
    return xxhash.xxh3_64_hexdigest(content)


class Index:
    """The places of all samples."""

    def __init__(self, folder: Path, checksum: str) -> None:
        """Map the file.

        Raises:
            DataError: missing or damaged.
        """
        path = folder / INDEX
        try:
            content: Any = pa.memory_map(str(path)).read_buffer()
            if xxhash.xxh3_64_hexdigest(content) != checksum:
                raise DataError(f"{path}: damaged, its checksum does not hold")
            batch = pa.ipc.open_file(pa.BufferReader(content)).get_batch(0)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read ({error})") from error
        self._high, self._low, self._block, self._row = (
            batch[name].to_numpy() for name in SCHEMA.names
        )

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._high)

    def find(self, sample: str) -> tuple[int, int] | None:
        """Block and row of a sample; None if it is not there."""
        high, low = np.uint64(int(sample[:16], 16)), np.uint64(int(sample[16:], 16))
        place = int(np.searchsorted(self._high, high))
        while place < len(self._high) and self._high[place] == high:
            if self._low[place] == low:
                return int(self._block[place]), int(self._row[place])
            place += 1
        return None
