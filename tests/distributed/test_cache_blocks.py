"""What the ranks that build a cache tell one another."""

from pathlib import Path

import torch.distributed as dist

from ekd_nemo.teacher.cache.writer import CacheWriter
from tests.distributed.ranks import run_ranks
from tests.unit.teacher.caches import identity, row, sample_name


def build(rank: int, world: int, folder: Path) -> list[int]:
    """Each writes its blocks; the blocks that it can describe in the end."""
    from ekd_nemo.models.cache_build import gather_described

    samples = [sample_name(number) for number in range(8)]
    writer = CacheWriter(folder, identity(), samples)
    if rank == 0:
        writer.begin()
    dist.barrier()
    for block in writer.missing(rank, world):
        rows = [row(samples.index(name), identity()) for name in writer.block(block)]
        writer.write(block, rows)
    gather_described(writer)
    return sorted(writer.described)


def test_the_first_rank_knows_the_blocks_of_all(tmp_path: Path) -> None:
    assert run_ranks(build, 2, tmp_path, tmp_path / "cache") == [[0, 1, 2], [1]]
