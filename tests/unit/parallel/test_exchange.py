"""Groups for exchanges, on one rank."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from ekd_nemo.parallel import exchange
from ekd_nemo.parallel.teacher_groups import teacher_groups
from ekd_nemo.teacher.layout import Layout


@pytest.fixture
def world() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("world")
def test_all_ranks_meet_in_a_new_group_before_any_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL connects a group when it is first used: a rank that has no message must not stay away."""
    met: list[Any] = []
    reduce = dist.all_reduce

    def all_reduce(*tensors: Any, group: Any) -> None:
        met.append(group)
        reduce(*tensors, group=group)

    monkeypatch.setattr(exchange.dist, "all_reduce", all_reduce)
    made = exchange.exchange_group()
    assert met == [made]
    assert dist.get_process_group_ranks(made) == [0]


@pytest.mark.usefixtures("world")
def test_the_groups_of_a_teacher_wait_as_long_as_megatrons(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives groups of NCCL ten minutes of their own, whatever the world's limit is."""
    limits: list[float] = []
    make = dist.new_group

    def new_group(*ranks: Any, timeout: timedelta) -> Any:
        limits.append(timeout.total_seconds())
        return make(*ranks, timeout=timeout)

    monkeypatch.setattr(exchange.dist, "new_group", new_group)
    exchange.exchange_group()
    teacher_groups(Layout(1, 1, 1))
    assert limits == [1800.0] * 3
