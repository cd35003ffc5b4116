"""Held-out cross-entropy and KL to the teacher, for every method alike."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from ekd_nemo.config.recipe import Train
from ekd_nemo.data.order import held_out_passes
from ekd_nemo.data.packed import PackedDataset
from ekd_nemo.models.distill import DistillModel
from ekd_nemo.models.stacking import stack
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.normalise import sum_from_last_stage
from ekd_nemo.parallel.schedule import forward_hidden
from ekd_nemo.teacher.source import VALIDATION, TeacherOutputs, TeacherSource


@dataclass(frozen=True)
class Held:
    """A validation result.

    Attributes:
        ce: cross-entropy, nats a token; None if no token carried loss.
        kl_to_teacher: KL(teacher || student) at temperature 1, nats a token; None likewise, and
            without the teacher's distribution.
        tokens: tokens that both are means over.
    """

    ce: float | None
    kl_to_teacher: float | None
    tokens: int


class Validation:
    """Runs student and teacher over the first samples of the validation split, always the same.

    Held-out samples are dealt to data-parallel ranks in turn, each rank taking as many; those that
    do not fill a round over all ranks and microbatches are left out, and the count says so.
    """

    def __init__(
        self,
        samples: PackedDataset,
        train: Train,
        teacher: TeacherSource | None,
        where: torch.device,
    ) -> None:
        """Take up to `train.val_samples` of `samples`."""
        self._samples, self._train = samples, train
        self._teacher, self._device = teacher, where

    def run(self, chunks: Sequence[DistillModel]) -> Held:
        """Evaluate, on all ranks together; the model's mode is as before afterwards.

        Args:
            chunks: the student's parts on this rank.
        """
        training = chunks[0].training
        for chunk in chunks:
            chunk.eval()
        sums, tokens = torch.zeros(2, dtype=torch.float64), 0
        # Interleaved stages want as many microbatches at once as there are stages.
        stages = parallel_state.get_pipeline_model_parallel_world_size() if len(chunks) > 1 else 1
        for rounds in held_out_passes(
            len(self._samples),
            self._train,
            stages,
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
        ):
            rows = [[self._samples[index] for index in indices] for indices in rounds]
            batches = [Microbatch.of(stack(each), self._device) for each in rows]
            sums = sums + self._sums(chunks, batches)
            tokens += sum(int(batch.num_valid) for batch in batches)
        for chunk in chunks:
            chunk.train(training)
        ce, kl = sum_from_last_stage(sums).tolist()
        total = self._count(tokens)
        if total == 0:
            return Held(ce=None, kl_to_teacher=None, tokens=0)
        return Held(ce / total, None if math.isnan(kl) else kl / total, total)

    def _sums(self, chunks: Sequence[DistillModel], batches: Sequence[Microbatch]) -> Tensor:
        taught = TeacherOutputs()
        if self._teacher is not None:
            taught = self._teacher.outputs(batches, VALIDATION)
        hidden = forward_hidden([chunk.module for chunk in chunks], batches)
        if not hidden:
            return torch.zeros(2, dtype=torch.float64)
        return chunks[-1].evaluate(batches, hidden, taught)

    def _count(self, tokens: int) -> int:
        group = parallel_state.get_data_parallel_group()
        count = torch.tensor(tokens, device=self._device)
        if group.size() > 1:
            dist.all_reduce(count, group=group)
        return int(count)
