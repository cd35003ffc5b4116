"""run_ranks itself: results, errors and hangs are all seen."""

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import RanksError, run_ranks

LIMIT_S = 8.0


def _sum(rank: int, world_size: int, offset: float) -> torch.Tensor:
    value = torch.tensor([rank + offset])
    dist.all_reduce(value)
    assert dist.get_world_size() == world_size
    assert torch.get_num_threads() == 1
    return value


def _fail_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("rank one is broken")
    dist.barrier()


def _hang(rank: int, world_size: int) -> None:
    time.sleep(600)


def test_results_come_back_by_rank(tmp_path: Path) -> None:
    """Every rank takes part in the collective and returns its value."""
    results = run_ranks(_sum, 2, tmp_path, 0.5)
    assert [result.item() for result in results] == [2.0, 2.0]


def test_the_error_of_any_rank_is_shown(tmp_path: Path) -> None:
    """The message names the rank and holds its traceback, although rank 0 waits in a barrier."""
    with pytest.raises(RanksError, match="rank one is broken"):
        run_ranks(_fail_on_one, 2, tmp_path)


def test_a_hang_ends_at_the_limit_with_its_stack(tmp_path: Path) -> None:
    """A rank that hangs is killed and says where it was."""
    start = time.monotonic()
    with pytest.raises(RanksError, match="_hang"):
        run_ranks(_hang, 1, tmp_path, timeout_s=LIMIT_S)
    assert time.monotonic() - start < LIMIT_S + 10
