"""What happens around Megatron's schedule in a step: data, denominators, the teacher, records."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from nemo.lightning.megatron_parallel import MegatronStep
from torch import Tensor

from ekd_nemo.backend.device import compute_device
from ekd_nemo.config.recipe import Train
from ekd_nemo.data.packed import PackedDataset
from ekd_nemo.models.distill import DistillModel, step_inputs
from ekd_nemo.models.phases import PhaseClock
from ekd_nemo.models.training_log import StepRecord, TrainingLog
from ekd_nemo.models.validation import Validation
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.normalise import global_counts, loss_scale, sum_from_last_stage
from ekd_nemo.teacher.source import TeacherSource


def pull(data: Iterator[Any]) -> list[Microbatch]:
    """This rank's microbatches of the next step, on the device."""
    item, *_ = next(data)
    return [Microbatch.of(each, compute_device()) for each in item]


class Stepping(pl.Callback):
    """Prepares each step before Megatron's schedule and records it afterwards.

    The whole global batch is read first, its valid tokens are counted over all data-parallel
    ranks, and the teacher runs over it, before the student's first microbatch: so every microbatch
    is scaled by the global count, and nothing but the student communicates in its schedule.
    """

    def __init__(
        self,
        model: DistillModel,
        make_teacher: Callable[[], TeacherSource] | None,
        held_out: PackedDataset,
        train: Train,
        log: TrainingLog,
        phases: PhaseClock,
    ) -> None:
        """Hold what a step needs.

        Args:
            model: the student; it distils if its objective has a family.
            make_teacher: called once Megatron's groups stand; None without teacher.
            held_out: samples for validation.
            train: batch sizes and cadence.
            log: where steps are recorded.
            phases: the rank's marks.
        """
        self._model, self._make_teacher, self._train = model, make_teacher, train
        self._log, self._phases, self._held_out = log, phases, held_out
        self._teacher: TeacherSource | None = None
        self._counts, self._local = [0, 0], [0, 0]
        self._sums = torch.zeros(0)
        self._started_ns, self._lr = 0, 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the teacher: the groups stand, the student is not built yet."""
        if self._make_teacher is not None:
            self._teacher = self._make_teacher()
        self._validation = Validation(self._held_out, self._train, self._teacher, compute_device())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Everything up to here was preparation."""
        self._phases.enter("student_train")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note when the step began and with which learning rate."""
        self._started_ns = time.monotonic_ns()
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        """Read the batch, count, run the teacher, and hand the schedule prepared microbatches."""
        batches = pull(step.data)
        self._local = [
            int(sum(b.num_tokens for b in batches)),
            int(sum(b.num_valid for b in batches)),
        ]
        self._counts = global_counts(batches).tolist()
        taught = None
        if self._teacher is not None and self._model.objective.families:
            with self._phases.phase("teacher_forward"):
                taught = self._teacher.outputs(batches)
        scale = loss_scale(self._counts[1], len(batches))
        size, length = batches[0].tokens.shape
        return dataclasses.replace(
            step,
            data=iter(step_inputs(batches, scale, taught)),
            num_microbatches=len(batches),
            micro_batch_size=size,
            seq_length=length,
        )

    def on_megatron_step_end(
        self, step: MegatronStep, microbatch_outputs: Sequence[Any], reduced: Tensor
    ) -> None:
        """Bring the terms' sums together on every rank."""
        terms = len(self._model.terms)
        local = reduced if microbatch_outputs else torch.zeros(terms)
        self._sums = sum_from_last_stage(local.double().reshape(terms))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record the step, then validate when it is time."""
        step = trainer.global_step
        means = (self._sums / max(self._counts[1], 1)).tolist()
        grad_norm = trainer.callback_metrics.get("grad_norm")
        self._phases.step(step, *self._local)
        self._log.step(
            StepRecord(
                step=step,
                terms=dict(zip(self._model.terms, means, strict=True)),
                loss=self._total(means),
                lr=self._lr,
                grad_norm=None if grad_norm is None else float(grad_norm),
                tokens=self._counts[0],
                tokens_valid=self._counts[1],
                duration_s=(time.monotonic_ns() - self._started_ns) / 1e9,
            )
        )
        if step % self._train.val_interval == 0 or step == self._train.steps:
            with self._phases.phase("eval"):
                self._log.validation(step, self._validation.run(self._model))

    def _total(self, means: Sequence[float]) -> float:
        objective = self._model.objective
        weights = (objective.weight_ce, objective.weight_of("response"))
        return sum(weight * mean for weight, mean in zip(weights, means, strict=False))
