"""Writing a cache: blocks in a fixed order of samples, shared out over ranks, resumable.

Which samples a block holds depends on the samples and the identity alone, so a build that was
killed, or that goes on with other ranks, ends with the bytes of an undisturbed one.
"""

import errno
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from ekd_nemo.errors import DataError, RunError
from ekd_nemo.sources.cache_manifest import (
    BLOCKS,
    BUILDING,
    MANIFEST,
    Block,
    Building,
    CacheIdentity,
    CacheManifest,
    read_building,
    read_cache_manifest,
    write_building,
    write_cache_manifest,
)
from ekd_nemo.teacher.cache.block import PARTIAL, OpenBlock, Row, block_name, write_block
from ekd_nemo.teacher.cache.index import Index, write_index

_WAY_OUT = "give another folder, or remove this one"


class CacheWriter:
    """The blocks of one cache. Every rank makes one; `begin` and `finish` are for one of them.

    Attributes:
        folder: of the cache.
        identity: whose outputs, and in which form.
        samples: hashes of all samples, each once.
        described: for the manifest, the blocks that this one has written or found whole.
    """

    def __init__(self, folder: Path, identity: CacheIdentity, samples: Sequence[str]) -> None:
        """Lay out the blocks.

        Args:
            folder: of the cache.
            identity: whose outputs, and in which form.
            samples: hashes in the order of the data; those that come again are kept once.
        """
        self.folder, self.identity = folder, identity
        self.samples = list(dict.fromkeys(samples))
        self.described: dict[int, Block] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks of the whole cache."""
        return -(-len(self.samples) // self.identity.block_samples)

    def is_finished(self) -> bool:
        """Whether the folder holds all of these samples of this teacher in this form.

        Raises:
            DataError: it holds another cache, or anything else; nothing is overwritten.
        """
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return False
        if (self.folder / MANIFEST).is_file():
            manifest = read_cache_manifest(self.folder)
            self._refuse_another(manifest.identity)
            index = Index(self.folder, manifest.index_checksum)
            absent = sum(index.find(sample) is None for sample in self.samples)
            if absent:
                raise DataError(
                    f"{self.folder}: a finished cache without {absent} of {len(self.samples)} "
                    f"samples; {_WAY_OUT}"
                )
            return True
        building = read_building(self.folder)
        if building is None:
            raise DataError(f"{self.folder}: is there and is no cache; {_WAY_OUT}")
        self._refuse_another(building.identity)
        if building != self._building():
            raise DataError(
                f"{self.folder}: an unfinished cache of {building.samples} other samples; "
                f"{_WAY_OUT}"
            )
        return False

    def begin(self) -> None:
        """Make the folder and remove what a killed build has left half made."""
        with self._room():
            if not (self.folder / BUILDING).is_file():
                write_building(self.folder, self._building())
        for partial in (self.folder / BLOCKS).glob(f".block-*{PARTIAL}*"):
            partial.unlink(missing_ok=True)

    def block(self, number: int) -> list[str]:
        """The samples of a block."""
        size = self.identity.block_samples
        return self.samples[number * size : (number + 1) * size]

    def missing(self, rank: int = 0, ranks: int = 1) -> list[int]:
        """The blocks that this one of several writers has still to make."""
        return [n for n in range(rank, self.num_blocks, ranks) if not self._is_whole(n)]

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Write a block.

        Raises:
            RunError: the disk is full; the blocks before stay.
        """
        assert [row.sample for row in rows] == self.block(number)
        with self._room():
            write_block(self.folder, number, rows)
        self.described[number] = OpenBlock(self.folder, number).describe()

    def finish(self) -> CacheManifest:
        """Write index and manifest, once all ranks have written their blocks.

        Blocks that are not in `described` are read for it.
        """
        numbers = range(self.num_blocks)
        for number in sorted(set(numbers) - set(self.described)):
            self.described[number] = OpenBlock(self.folder, number).describe()
        described = tuple(self.described[number] for number in numbers)
        with self._room():
            manifest = CacheManifest(
                identity=self.identity,
                samples=len(self.samples),
                tokens=sum(block.tokens for block in described),
                index_checksum=write_index(self.folder, [self.block(n) for n in numbers]),
                blocks=described,
            )
            write_cache_manifest(self.folder, manifest)
        return manifest

    def _building(self) -> Building:
        digest = blake2b("".join(self.samples).encode(), digest_size=16).hexdigest()
        return Building(identity=self.identity, samples=len(self.samples), samples_digest=digest)

    def _refuse_another(self, there: CacheIdentity) -> None:
        differing = there.differences(self.identity)
        if differing:
            raise DataError(
                f"{self.folder}: holds another cache: {'; '.join(differing)}; {_WAY_OUT}"
            )

    def _is_whole(self, number: int) -> bool:
        """Whether a block is there with the right samples and every checksum holding."""
        if not (self.folder / block_name(number)).is_file():
            return False
        try:
            block = OpenBlock(self.folder, number)
            for row in range(len(block.samples)):
                block.payload(row)
        except DataError:
            return False  # torn by a crash of the machine: made again, in its place
        if block.samples != self.block(number):
            return False
        self.described[number] = block.describe()
        return True

    @contextmanager
    def _room(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            there = sum((self.folder / block_name(n)).is_file() for n in range(self.num_blocks))
            raise RunError(
                f"{self.folder}: the disk is full; {there} of {self.num_blocks} blocks are whole "
                "and stay; free some room and give the same command again"
            ) from error
