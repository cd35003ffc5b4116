"""Reading a finished cache: one sample at a time, from memory-mapped blocks."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from torch import Tensor

from ekd_nemo.errors import DataError
from ekd_nemo.sources.cache_manifest import SPARSE, CacheIdentity, read_cache_manifest
from ekd_nemo.teacher.cache.block import OpenBlock
from ekd_nemo.teacher.cache.dense_codec import decode_dense
from ekd_nemo.teacher.cache.index import Index
from ekd_nemo.teacher.cache.sparse_codec import SparseRows, decode_sparse

OPEN_BLOCKS = 256


@dataclass(frozen=True)
class Entry:
    """One sample as it lies in the cache."""

    sample: str
    tokens: int
    payload: memoryview


class CacheReader:
    """Finds samples by their hash; may be used from several threads."""

    def __init__(self, folder: Path | str) -> None:
        """Open manifest and index.

        Raises:
            DataError: no finished cache, or a damaged one.
        """
        self.folder = Path(folder)
        self.manifest = read_cache_manifest(self.folder)
        self._index = Index(self.folder, self.manifest.index_checksum)
        self._open: OrderedDict[int, OpenBlock] = OrderedDict()
        self._lock = Lock()

    @property
    def identity(self) -> CacheIdentity:
        """Whose outputs, and in which form."""
        return self.manifest.identity

    def holds(self, sample: str) -> bool:
        """Whether the index names a sample; its block is not looked at."""
        return self._index.find(sample) is not None

    def entry(self, sample: str) -> Entry:
        """The stored outputs of a sample, once their checksum holds.

        Raises:
            DataError: names the sample; it is not in the cache, or its block is damaged.
        """
        place = self._index.find(sample)
        if place is None:
            raise DataError(
                f"{self.folder}: holds no sample {sample}; a cache of the same packed data is "
                "accepted"
            )
        number, row = place
        try:
            block = self._block(number)
            if block.samples[row] != sample:
                raise DataError(f"{block.path}: damaged, row {row} is another sample")
            return Entry(sample, block.tokens[row], block.payload(row))
        except DataError as error:
            raise DataError(f"sample {sample}: {error}") from error

    def sparse(self, sample: str) -> SparseRows:
        """Ids and log-probabilities of a sample's tokens."""
        assert self.identity.kind in SPARSE
        entry = self.entry(sample)
        try:
            return decode_sparse(entry.payload, self.identity)
        except DataError as error:
            raise DataError(f"{self.folder}: sample {sample}: {error}") from error

    def dense(self, sample: str, part: int) -> Tensor:
        """Part `part` of a sample: [rows, H]; rows are tokens, or segments for embeddings."""
        entry = self.entry(sample)
        try:
            return decode_dense(entry.payload, part, self.identity)
        except DataError as error:
            raise DataError(f"{self.folder}: sample {sample}: {error}") from error

    def _block(self, number: int) -> OpenBlock:
        with self._lock:
            found = self._open.get(number)
            if found is None:
                found = OpenBlock(self.folder, number, self.manifest.blocks[number])
                self._open[number] = found
                if len(self._open) > OPEN_BLOCKS:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return found


def damages(folder: Path | str) -> list[str]:
    """Every file of a cache that is not as its manifest says, in one line each; all bytes are read.

    Raises:
        DataError: the manifest itself is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_cache_manifest(folder)
    found: list[str] = []
    try:
        index = Index(folder, manifest.index_checksum)
        if len(index) != manifest.samples:
            found.append(f"{folder}: the index has {len(index)} samples, not {manifest.samples}")
    except DataError as error:
        found.append(str(error))
    for number, expected in enumerate(manifest.blocks):
        try:
            block = OpenBlock(folder, number, expected)
            if block.describe() != expected:
                found.append(f"{block.path}: damaged, the checksum of the block does not hold")
        except DataError as error:
            found.append(str(error))
    return found
