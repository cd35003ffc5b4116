"""The passes that a student asks of its teacher in a launch, known beforehand from the recipe."""

from collections.abc import Iterator, Sequence

import torch

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.data.order import held_out_passes, step_microbatches
from ekd_nemo.data.packed import PackedDataset
from ekd_nemo.models.stacking import stack
from ekd_nemo.models.terms import loss_plan
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.split_server import Pass
from ekd_nemo.teacher.layout import Layout, Unit
from ekd_nemo.teacher.source import VALIDATION


class Passes:
    """Every call that `Preparing` and `Validation` will make, in their order, with the same samples.

    Both sides read the same packed data by the same rule, so the teacher is told nothing but the
    step from which the student goes on.
    """

    def __init__(
        self,
        recipe: Recipe,
        student: Architecture,
        teacher: Architecture,
        layout: Layout,
        where: torch.device,
    ) -> None:
        """Take what decides the passes.

        Args:
            recipe: the run's.
            student: the student's decoder.
            teacher: the teacher's.
            layout: the student's.
            where: the device on which microbatches are wanted.
        """
        cut = recipe.student.parallel
        self._recipe, self._layout, self._where = recipe, layout, where
        self._train = PackedDataset(recipe.data.path, "train")
        self._held_out = PackedDataset(recipe.data.path, "validation")
        plan = loss_plan(recipe.objective, student, teacher)
        self._needs = plan.needs(student.num_layers, cut.pipeline, cut.virtual_pipeline)
        self._at_once = cut.pipeline if cut.virtual_pipeline else 1

    def after(self, step: int) -> Iterator[Pass]:
        """The passes of a launch that goes on after `step` steps."""
        train = self._recipe.train
        for number in range(step, train.steps):
            if self._needs:
                yield self._training(number)
            done = number + 1
            if done % train.val_interval == 0 or done == train.steps:
                yield from self._validation()

    def _training(self, step: int) -> Pass:
        train, seed, copies = self._recipe.train, self._recipe.seed, self._layout.data
        shares = [
            step_microbatches(len(self._train), seed, step, train, rank, copies)
            for rank in range(copies)
        ]

        def read(unit: Unit) -> Microbatch:
            return self._read(self._train, shares[unit.data][unit.index])

        return Pass(len(shares[0]), self._needs, read)

    def _validation(self) -> Iterator[Pass]:
        train, copies = self._recipe.train, self._layout.data
        shares = [
            held_out_passes(len(self._held_out), train, self._at_once, rank, copies)
            for rank in range(copies)
        ]
        for number in range(len(shares[0])):

            def read(unit: Unit, number: int = number) -> Microbatch:
                return self._read(self._held_out, shares[unit.data][number][unit.index])

            yield Pass(self._at_once, VALIDATION, read)

    def _read(self, samples: PackedDataset, indices: Sequence[int]) -> Microbatch:
        return Microbatch.of(stack([samples[index] for index in indices]), self._where)
