"""Has the nodes of a run compare their clocks once, when the ranks have met."""

import os

import lightning.pytorch as pl
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from ekd_nemo.models.meeting import compare_clocks
from ekd_nemo.models.phases import attempt
from ekd_nemo.records.rundir import RunDir


def record_clocks(run: RunDir) -> None:
    """Measure over the default group's store; rank 0 writes what was found, where there are several nodes.

    In a split run each side is a world of its own: `meeting.met` compares the nodes of both.
    """
    path = run.clocks(attempt())
    compare_clocks(_get_default_store(), dist.get_rank(), dist.get_world_size(), path)


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
