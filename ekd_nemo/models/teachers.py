"""The teacher where the recipe places it: on the student's ranks, on ranks of its own, or in a cache."""

from contextlib import ExitStack

import torch.distributed as dist
from torch import Tensor

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.placement import stands_alike, teacher_parallel
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.models.cached import cached_teacher
from ekd_nemo.models.frozen import frozen_stage, head_rows, shared_teacher
from ekd_nemo.models.meeting import met
from ekd_nemo.models.precision import DTYPES
from ekd_nemo.models.sides import Sides
from ekd_nemo.models.weights import FolderSource
from ekd_nemo.parallel.relaid_teacher import RelaidTeacher
from ekd_nemo.parallel.split_teacher import Remote, SplitTeacher
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.manifest import sequence_length
from ekd_nemo.teacher.layout import Layout
from ekd_nemo.teacher.source import TeacherSource


def teacher_source(
    recipe: Recipe, student: Architecture, teacher: Architecture, first_step: int
) -> TeacherSource:
    """The teacher where the recipe places it; Megatron's groups stand."""
    assert recipe.teacher is not None
    if recipe.teacher.placement == "cached":
        return cached_teacher(recipe, student, teacher, first_step)
    if not stands_alike(recipe, student, teacher):
        return relaid_teacher(recipe, student.vocab_size)
    return shared_teacher(
        FolderSource(recipe.teacher.path),
        Layout.of(recipe.student.parallel, dist.get_world_size()),
        recipe.teacher.precision,
        sequence_length(recipe.data.path),
    )


def relaid_teacher(recipe: Recipe, vocab_size: int) -> RelaidTeacher:
    """The teacher on the student's ranks, in a layout of its own; all ranks together.

    Args:
        recipe: the run's.
        vocab_size: the student's.
    """
    parallel = teacher_parallel(recipe)
    assert recipe.teacher is not None
    assert parallel is not None
    world = dist.get_world_size()
    source, student = FolderSource(recipe.teacher.path), Layout.of(recipe.student.parallel, world)
    stage = frozen_stage(
        source,
        Layout.of(parallel, world),
        recipe.teacher.precision,
        sequence_length(recipe.data.path),
        offload=recipe.teacher.offload,
    )
    return RelaidTeacher(stage, student, _head(recipe, source, student, vocab_size))


def split_teacher(
    recipe: Recipe,
    student: Architecture,
    teacher: Architecture,
    sides: Sides,
    run: RunDir,
    first_step: int,
    ending: ExitStack,
) -> SplitTeacher:
    """The teacher on ranks of its own, ahead of these; all ranks of both sides together.

    Args:
        recipe: the run's.
        student: the student's decoder.
        teacher: the teacher's decoder.
        sides: which rank is whose.
        run: where the sides meet.
        first_step: steps that are done already.
        ending: closed, with the error if there is one, when the run ends.

    Raises: RunError if the teacher does not come.
    """
    assert recipe.teacher is not None
    assert recipe.teacher.split is not None
    joint = ending.enter_context(met(sides.seat, run))
    if sides.seat.rank == 0:
        joint.tell_first_step(first_step)
    remote = Remote(
        sides.teacher, teacher.num_layers, teacher.hidden_size, recipe.teacher.split.transport
    )
    source = FolderSource(recipe.teacher.path)
    head = _head(recipe, source, sides.student, student.vocab_size)
    return SplitTeacher(joint, remote, sides.student, head, DTYPES[recipe.teacher.precision])


def release_teacher(sides: Sides, run: RunDir, steps: int) -> None:
    """Tell a split teacher that all steps are done already: it has nothing to do."""
    with met(sides.seat, run) as joint:
        if sides.seat.rank == 0:
            joint.tell_first_step(steps)


def _head(recipe: Recipe, source: FolderSource, student: Layout, vocab_size: int) -> Tensor | None:
    """The teacher's rows of this rank's shard of the vocabulary, on the student's last stage."""
    assert recipe.teacher is not None
    place = student.place(dist.get_rank())
    if place.pipeline != student.pipeline - 1:
        return None
    return head_rows(source, student, place, recipe.teacher.precision, vocab_size)
