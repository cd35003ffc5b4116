"""Has the nodes of a run compare their clocks once, when the ranks have met."""

import os

import lightning.pytorch as pl
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from ekd_nemo.models.phases import attempt
from ekd_nemo.records.clock import boot_id, node_name
from ekd_nemo.records.clocks import write_clocks
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.teacher.joint import Joint
from ekd_nemo.telemetry.clock_sync import NodeClock, measure_clocks


def record_clocks(run: RunDir) -> None:
    """Measure over the default group's store; rank 0 writes what was found, where there are several nodes.

    In a split run each side is a world of its own: `record_joint_clocks` compares the nodes of both.
    """
    here = NodeClock(node_name(), boot_id())
    rank, world = dist.get_rank(), dist.get_world_size()
    found = measure_clocks(_get_default_store(), rank, world, here, attempt())
    if found is not None:
        write_clocks(run.clocks(attempt()), found)


def record_joint_clocks(run: RunDir, joint: Joint) -> None:
    """The same over both sides of a split run, against the student's first rank; every rank calls it after joining.

    Beside what the student's nodes found among themselves: a run's window spans its nodes only where one record
    holds them all.
    """
    here, seat = NodeClock(node_name(), boot_id()), joint.seat
    store = dist.PrefixStore("clocks", joint.store)
    found = measure_clocks(store, seat.index, seat.students + seat.teachers, here, attempt())
    if found is not None:
        write_clocks(run.joint_clocks(attempt()), found)


class MeasureClocks(pl.Callback):
    """Calls `record_clocks` before anything is trained, in runs of more than one node."""

    def __init__(self, run: RunDir) -> None:
        """Remember where to write."""
        self._run = run

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The strategy has made the process group by now."""
        world, local = (int(os.environ.get(n, "1")) for n in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        if dist.is_initialized() and world > local:
            record_clocks(self._run)
