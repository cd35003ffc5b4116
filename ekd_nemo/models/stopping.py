"""SIGTERM and SIGUSR1: finish the step, save, leave."""

import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from ekd_nemo.backend.device import compute_device

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopOnSignal(pl.Callback):
    """Ends training after the step in which any rank was asked to stop; all ranks agree on it.

    The checkpoint callback then saves, as at any end. Collectives: one maximum of one integer a
    step where there are several ranks.
    """

    def __init__(self) -> None:
        """Take over the signals from now on."""
        self.received: str | None = None
        self.stopped_at: int | None = None
        self._take_over()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals back from Lightning, whose handler of SIGTERM cuts the step short."""
        self._take_over()

    def _take_over(self) -> None:
        for each in SIGNALS:
            signal.signal(each, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ask whether anybody was told to stop."""
        if self._anybody():
            trainer.should_stop = True
            self.stopped_at = trainer.global_step

    def _anybody(self) -> bool:
        if dist.get_world_size() == 1:
            return self.received is not None
        flag = torch.tensor(int(self.received is not None), device=compute_device())
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)
