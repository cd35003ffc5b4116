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
from ekd_nemo.models.distill import DistillModel
from ekd_nemo.models.pace import Pace
from ekd_nemo.models.phases import PhaseClock
from ekd_nemo.models.preparing import Prepared, Preparing
from ekd_nemo.models.training_log import StepRecord, TrainingLog
from ekd_nemo.models.validation import Validation
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.normalise import on_last_stage_once, sum_over_ranks
from ekd_nemo.teacher.source import TeacherSource


def pull(data: Iterator[Any]) -> list[Microbatch]:
    """This rank's microbatches of the next step, on the device."""
    item, *_ = next(data)
    return [Microbatch.of(each, compute_device()) for each in item]


class Stepping(pl.Callback):
    """Prepares each step before Megatron's schedule and records it afterwards."""

    def __init__(
        self,
        model: DistillModel,
        make_teacher: Callable[[], TeacherSource] | None,
        held_out: PackedDataset,
        train: Train,
        log: TrainingLog,
        phases: PhaseClock,
        pace: Pace,
    ) -> None:
        """Hold what a step needs.

        Args:
            model: the student; the first of its parts on this rank.
            make_teacher: called once Megatron's groups stand; None without teacher.
            held_out: samples for validation.
            train: batch sizes and cadence.
            log: where steps are recorded.
            phases: the rank's marks.
            pace: of the run's steps.
        """
        self._plan, self._make_teacher, self._train = model.plan, make_teacher, train
        self._preparing = Preparing(model.plan, model.seed, phases)
        self._log, self._phases, self._held_out, self._pace = log, phases, held_out, pace
        self._teacher: TeacherSource | None = None
        self._prepared: Prepared | None = None
        self._chunks: list[DistillModel] = []
        self._sums: list[float] = []
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
        self._chunks = [chunk for chunk in step.pipeline if isinstance(chunk, DistillModel)]
        batches = pull(step.data)
        self._prepared = self._preparing.step(self._chunks, batches, self._teacher)
        size, length = batches[0].tokens.shape
        return dataclasses.replace(
            step,
            data=iter(self._prepared.inputs),
            num_microbatches=len(batches),
            micro_batch_size=size,
            seq_length=length,
        )

    def on_megatron_step_end(
        self, step: MegatronStep, microbatch_outputs: Sequence[Any], reduced: Tensor
    ) -> None:
        """Bring the terms' sums together on every rank."""
        assert self._prepared is not None
        plan = self._plan
        mine = dict(self._prepared.sums)
        if microbatch_outputs and on_last_stage_once():
            mine |= dict(zip(plan.last_stage_terms, reduced.tolist(), strict=True))
        for chunk in self._chunks:
            mine |= self._preparing.feature_sums(chunk)
        values = [mine.get(term.name, 0.0) for term in plan.terms]
        self._sums = sum_over_ranks(torch.tensor(values, dtype=torch.float64)).tolist()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record the step, then validate when it is time."""
        step, prepared = trainer.global_step, self._prepared
        assert prepared is not None
        means = self._plan.means(self._sums, prepared.counts)
        grad_norm = trainer.callback_metrics.get("grad_norm")
        self._phases.step(step, prepared.tokens, prepared.tokens_valid)
        duration_s = (time.monotonic_ns() - self._started_ns) / 1e9
        self._log.step(
            StepRecord(
                step=step,
                terms=means,
                loss=self._plan.total(means),
                lr=self._lr,
                grad_norm=None if grad_norm is None else float(grad_norm),
                tokens=prepared.counts["tokens"],
                tokens_valid=prepared.counts["valid"],
                duration_s=duration_s,
                pace=self._pace.of(prepared.counts, duration_s) if self._log.speaks else None,
            )
        )
        if step % self._train.val_interval == 0 or step == self._train.steps:
            with self._phases.phase("eval"):
                self._log.validation(step, self._validation.run(self._chunks))
