"""Megatron distributed checkpoints in the run directory: the newest finished one is kept."""

import shutil
from multiprocessing import get_context
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from nemo.lightning.pytorch.callbacks import ModelCheckpoint

from ekd_nemo.backend.child import die_with_parent
from ekd_nemo.models.phases import PhaseClock

NAME = "step_{step:07d}"
_PREFIX = "step_"


def checkpoint_step(path: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(path.name.removeprefix(_PREFIX))


def finished_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first; not what a kill left half saved or half removed."""
    found = [p for p in folder.glob(f"{_PREFIX}[0-9]*") if p.is_dir() and not _marker(p).exists()]
    return sorted((p for p in found if (p / "weights").is_dir()), key=checkpoint_step)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint, None if there is none."""
    found = finished_checkpoints(folder)
    return found[-1] if found else None


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill in the middle of saving left; one process only, before the others look."""
    for marker in folder.glob(f"{_PREFIX}*{ModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX}"):
        torn = marker.with_name(
            marker.name.removesuffix(ModelCheckpoint.UNFINISHED_CHECKPOINT_SUFFIX)
        )
        if torn.is_dir():
            shutil.rmtree(torn)
        marker.unlink()


def _marker(path: Path) -> Path:
    return ModelCheckpoint.format_checkpoint_unfinished_marker_path(path)


def start_writers_helper() -> None:
    """Start the helper process of Megatron's checkpoint writer so that it dies with this process.

    Megatron starts it with the first checkpoint; after a `kill -9` it would stay for ever. Takes a
    second or two. Needed once, before the first checkpoint.
    """
    if filesystem_async._results_queue is None:  # pyright: ignore[reportUnnecessaryComparison]
        helper = SyncManager(ctx=get_context("spawn"))
        helper.start(initializer=die_with_parent)
        filesystem_async._results_queue = helper.Queue()


class StepCheckpoint(ModelCheckpoint):
    """NeMo's checkpoint callback: every n steps and at the end, whatever ended the run.

    The checkpoint of the last step holds no optimiser state, since nothing goes on from it.
    Which one to keep does not hang on a metric: ranks could disagree about it.
    """

    def __init__(self, folder: Path, interval: int, phases: PhaseClock) -> None:
        """Save to `folder` every `interval` steps."""
        super().__init__(
            dirpath=str(folder),
            filename=NAME,
            auto_insert_metric_name=False,
            monitor=None,
            save_last=False,
            save_top_k=-1,
            every_n_train_steps=interval,
            always_save_context=False,
            save_context_on_train_end=False,
            enable_version_counter=False,
        )
        self._phases = phases

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Save what has been trained since the last checkpoint."""
        if self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _monitor_candidates(self, trainer: Any) -> dict[str, torch.Tensor]:
        # Lightning would take the metric `step` that NeMo logs, which is behind by one.
        return {"step": torch.tensor(trainer.global_step), "epoch": torch.tensor(0)}

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        with self._phases.phase("checkpoint"):
            super()._save_checkpoint(trainer, filepath)
            self._remove_older(trainer)

    def _remove_older(self, trainer: Any) -> None:
        # Lightning forgets over a restart which checkpoint it has to remove next. Rank 0 looks, so
        # that all ranks, which meet in each removal, remove the same.
        older = [str(path) for path in finished_checkpoints(Path(str(self.dirpath)))[:-1]]
        for path in trainer.strategy.broadcast(older):
            self._remove_checkpoint(trainer, path)
