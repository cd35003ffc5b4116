"""Measures how far the nodes' monotonic clocks lie apart, over the store at which a run's ranks meet.

As NTP does: a node writes a question, rank 0 answers with its time, and the node notes its own time before and after.
The quickest of some exchanges counts; half of what it took bounds the error, whichever way was the slower one.
Source: RFC 5905, section 8 (clock offset and delay), with the answer's two times taken as one.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from ekd_nemo.records.clocks import ClockOffset, ClockOffsets

ROUNDS: Final = 16
_PREFIX: Final = "ekd-clock"
Clock = Callable[[], int]


class Store(Protocol):
    """What of torch's stores is used: `get` waits until the key is there."""

    def set(self, key: str, value: str) -> object:
        """Put a value."""
        ...

    def get(self, key: str) -> bytes:
        """Wait for a value."""
        ...


class NodeClock(NamedTuple):
    """Whose clock it is."""

    node: str
    boot_id: str


def measure_clocks(
    store: Store,
    rank: int,
    world: int,
    here: NodeClock,
    attempt: int,
    clock: Clock = time.monotonic_ns,
) -> ClockOffsets | None:
    """Measure once; every rank of the run calls it.

    Args:
        store: shared by all ranks, and new for each attempt.
        rank: of the caller; rank 0's clock is the reference.
        world: number of ranks.
        here: the caller's node.
        attempt: for the record.
        clock: CLOCK_MONOTONIC of the caller, in ns.

    Returns:
        On rank 0 the offsets of all nodes; None on the others, and where all ranks are on one node.
    """
    store.set(f"{_PREFIX}/name/{rank}", json.dumps(here))
    if rank == 0:
        names = [NodeClock(*json.loads(store.get(f"{_PREFIX}/name/{r}"))) for r in range(world)]
        leaders = _leaders(names)
        store.set(f"{_PREFIX}/leaders", json.dumps(leaders))
        others = [(leader, names[leader]) for leader in leaders if leader != 0]
        return _serve(store, others, here, attempt, clock) if others else None
    if rank in json.loads(store.get(f"{_PREFIX}/leaders")):
        _ask(store, rank, clock)
    return None


def _leaders(names: Sequence[NodeClock]) -> list[int]:
    """The first rank of each node."""
    first: dict[NodeClock, int] = {}
    for rank, name in enumerate(names):
        first.setdefault(name, rank)
    return list(first.values())


def _serve(
    store: Store,
    others: Sequence[tuple[int, NodeClock]],
    here: NodeClock,
    attempt: int,
    clock: Clock,
) -> ClockOffsets:
    """Answer one node after the other, then gather what they found."""
    begin_ns = clock()
    for leader, _ in others:
        for number in range(ROUNDS):
            store.get(f"{_PREFIX}/{leader}/{number}/ask")
            store.set(f"{_PREFIX}/{leader}/{number}/answer", str(clock()))
    offsets = [
        ClockOffset(node=here.node, boot_id=here.boot_id, ahead_ns=0, uncertainty_ns=0, rounds=0)
    ]
    for leader, name in others:
        ahead_ns, uncertainty_ns = json.loads(store.get(f"{_PREFIX}/{leader}/result"))
        offsets.append(
            ClockOffset(
                node=name.node,
                boot_id=name.boot_id,
                ahead_ns=ahead_ns,
                uncertainty_ns=uncertainty_ns,
                rounds=ROUNDS,
            )
        )
    return ClockOffsets(attempt=attempt, t_mono_ns=begin_ns, offsets=tuple(offsets))


def _ask(store: Store, rank: int, clock: Clock) -> None:
    """Ask for rank 0's time some times over, and tell what the quickest answer says."""
    found: list[tuple[int, int]] = []  # uncertainty, ahead
    for number in range(ROUNDS):
        before_ns = clock()
        store.set(f"{_PREFIX}/{rank}/{number}/ask", "")
        theirs_ns = int(store.get(f"{_PREFIX}/{rank}/{number}/answer"))
        after_ns = clock()
        half_ns = (after_ns - before_ns + 1) // 2
        found.append((half_ns, before_ns + half_ns - theirs_ns))
    uncertainty_ns, ahead_ns = min(found)
    store.set(f"{_PREFIX}/{rank}/result", json.dumps([ahead_ns, uncertainty_ns]))
