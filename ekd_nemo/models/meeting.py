"""What happens once when ranks have met: nodes compare their clocks, the sides of a split run join.

The teacher's side of a split run, which has neither NeMo nor Lightning, loads this too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from ekd_nemo.models.phases import attempt
from ekd_nemo.records.clock import boot_id, node_name
from ekd_nemo.records.clocks import write_clocks
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.teacher.joint import Joint, Seat, backend_here, joined
from ekd_nemo.telemetry.clock_sync import NodeClock, measure_clocks


@contextmanager
def met(seat: Seat, run: RunDir, on_end: Callable[[], None] | None = None) -> Iterator[Joint]:
    """Join the sides of a split run (see `joined`), and compare the clocks of the nodes of both.

    The clocks are those against the student's first rank, beside what the student's nodes found among themselves: a
    run's window spans its nodes only where one record holds them all.

    Raises: RunError if the other side does not come.
    """
    with joined(seat, run.logs, backend_here(), on_end=on_end) as joint:
        store = dist.PrefixStore("clocks", joint.store)
        ranks = seat.students + seat.teachers
        compare_clocks(store, seat.index, ranks, run.joint_clocks(attempt()))
        yield joint


def compare_clocks(store: dist.Store, rank: int, world: int, path: Path) -> None:
    """Measure over a store; rank 0 writes what was found, where there are several nodes."""
    here = NodeClock(node_name(), boot_id())
    found = measure_clocks(store, rank, world, here, attempt())
    if found is not None:
        write_clocks(path, found)
