"""Offsets between nodes' clocks: simulated clocks and delays, and ranks that meet in threads."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given, settings
from hypothesis import strategies as st

from ekd_nemo.records.clocks import ClockOffsets
from ekd_nemo.telemetry.clock_sync import NodeClock, measure_clocks


class SlowStore:
    """A store in memory whose answers take a while, differently each way."""

    def __init__(self, seed: int) -> None:
        self._values: dict[str, str] = {}
        self._changed = threading.Condition()
        self._random = random.Random(seed)

    def set(self, key: str, value: str) -> None:
        time.sleep(self._random.uniform(0, 2e-4) if key.endswith("ask") else 0)
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> bytes:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, timeout=120)
            return self._values[key].encode()


def meet(nodes: list[str], ahead_ns: dict[str, int], seed: int = 0) -> list[ClockOffsets | None]:
    """All ranks at once, each on the clock of its node."""
    store = SlowStore(seed)

    def of_rank(rank: int) -> ClockOffsets | None:
        node = nodes[rank]
        clock = lambda: time.monotonic_ns() + ahead_ns[node]  # noqa: E731
        return measure_clocks(store, rank, len(nodes), NodeClock(node, f"boot-{node}"), 3, clock)

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(of_rank, range(len(nodes))))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 10**15), min_size=2, max_size=3), st.integers(0, 9))
def test_offsets_are_found_within_their_own_bound(apart_ns: list[int], seed: int) -> None:
    names = [f"n{number}" for number in range(len(apart_ns))]
    ahead = dict(zip(names, apart_ns, strict=True))
    found, *others = meet([name for name in names for _ in range(2)], ahead, seed)
    assert found is not None and others == [None] * (2 * len(names) - 1)
    assert [offset.node for offset in found.offsets] == names
    assert (found.attempt, found.offsets[0].ahead_ns) == (3, 0)
    for offset in found.offsets:
        truth_ns = ahead[offset.node] - ahead["n0"]
        assert abs(offset.ahead_ns - truth_ns) <= offset.uncertainty_ns
        assert offset.boot_id == f"boot-{offset.node}"


def test_ranks_of_one_node_measure_nothing() -> None:
    assert meet(["n0", "n0", "n0"], {"n0": 5}) == [None, None, None]
