"""`python -m ekd_nemo.worker train --run DIR`: train what `DIR/recipe.yaml` says, or go on with it.

Checks everything that needs no engine first, so that a wrong recipe costs no import of NeMo.
"""

import argparse
import os
from pathlib import Path

from ekd_nemo.backend.device import let_messages_wait, take_device
from ekd_nemo.config.architecture import Architecture, check_layout, read_architecture
from ekd_nemo.config.fit import misfit
from ekd_nemo.config.placement import check_teacher_layout, student_ranks, teacher_parallel
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import read_resolved
from ekd_nemo.errors import ConfigError, LayoutError, RunDirError
from ekd_nemo.models.phases import PhaseClock, coordinates, device_uuids
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.cache_fit import check_cache_fits
from ekd_nemo.sources.manifest import sequence_length
from ekd_nemo.sources.shared_ids import check_shared_ids


def main(argv: list[str]) -> int:
    """Train; returns 0, or 75 when a signal stopped the run and its state is saved.

    Raises: EkdError in one line for what the user can mend.
    """
    parser = argparse.ArgumentParser(prog="python -m ekd_nemo.worker train", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run directory")
    arguments = parser.parse_args(argv)
    run = RunDir(arguments.run)
    if not run.recipe_yaml.is_file():
        raise RunDirError(
            f"{run.path}: no recipe.yaml; a run directory made by the launcher has one"
        )
    recipe = read_resolved(run.recipe_yaml)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    student, teacher = architectures(recipe)
    students = student_ranks(recipe, world)
    check(recipe, student, teacher, students)
    if rank >= students:
        let_messages_wait()
    take_device()
    phases = PhaseClock(
        run.marks(rank),
        rank,
        _coordinates(recipe, rank, students, world),
        device_uuids(int(os.environ.get("LOCAL_RANK", "0"))),
    )
    try:
        phases.enter("prerun")
        if students == world:
            from ekd_nemo.models.training import train

            return train(run, recipe, student, teacher, phases)
        assert teacher is not None
        return _on_its_side(run, recipe, student, teacher, phases)
    finally:
        phases.close()


def _coordinates(recipe: Recipe, rank: int, students: int, world: int) -> dict[str, int]:
    """Where a rank stands in its own model: the student's ranks come first."""
    if rank < students:
        return coordinates(rank, students, recipe.student.parallel)
    parallel = teacher_parallel(recipe)
    assert parallel is not None
    return coordinates(rank - students, world - students, parallel)


def _on_its_side(
    run: RunDir, recipe: Recipe, student: Architecture, teacher: Architecture, phases: PhaseClock
) -> int:
    """Train, or teach: this rank's part of a split run."""
    from ekd_nemo.models.sides import enter_world, split_sides

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    sides = split_sides(recipe, rank, world)
    assert sides is not None
    enter_world(sides.seat)
    if sides.seat.side == "teacher":
        from ekd_nemo.models.teaching import teach

        return teach(run, recipe, student, teacher, sides, phases)
    from ekd_nemo.models.training import train

    return train(run, recipe, student, teacher, phases, sides)


def architectures(recipe: Recipe) -> tuple[Architecture, Architecture | None]:
    """The decoders of student and teacher.

    Raises: CheckpointError if a folder is missing or no covered decoder.
    """
    from ekd_nemo.models.weights import resolve_folder

    teacher = None
    if recipe.teacher is not None:
        teacher = read_architecture(resolve_folder(recipe.teacher.path))
    init = recipe.student.init
    if init.source == "teacher_layers":
        assert teacher is not None
        assert init.keep_layers is not None
        return teacher.with_layers(len(init.keep_layers)), teacher
    assert init.path is not None
    return read_architecture(resolve_folder(init.path)), teacher


def check(recipe: Recipe, student: Architecture, teacher: Architecture | None, world: int) -> None:
    """Refuse what cannot train, before anything is made; `world` ranks hold whole copies.

    Raises: ConfigError, LayoutError or DataError.
    """
    parallel, train = recipe.student.parallel, recipe.train
    wrong = misfit(recipe, student, teacher)
    if wrong is not None:
        raise ConfigError(f"{wrong[0]}: {wrong[1]}")
    if recipe.teacher is not None and recipe.teacher.placement == "cached":
        check_cache_fits(recipe)
    check_layout(student, parallel.tensor, parallel.pipeline, "student")
    if teacher is not None:
        check_shared_ids(recipe, student, teacher)
    replica = parallel.tensor * parallel.pipeline
    share = train.micro_batch_size * (world // replica)
    if train.global_batch_size % share:
        raise LayoutError(
            f"train.global_batch_size {train.global_batch_size} with {world // replica} "
            f"data-parallel ranks and micro_batch_size {train.micro_batch_size}; accepted: a "
            f"multiple of {share}"
        )
    # Interleaved stages run as many microbatches at once as there are stages, or a multiple.
    at_once = parallel.pipeline if parallel.virtual_pipeline else 1
    if train.global_batch_size // share % at_once:
        raise LayoutError(
            f"train.global_batch_size {train.global_batch_size} gives {train.global_batch_size // share} "
            f"microbatches to a rank; accepted with virtual_pipeline: a multiple of {at_once}"
        )
    if train.val_samples < share * at_once:
        raise LayoutError(
            f"train.val_samples {train.val_samples} leaves no whole microbatch for each of "
            f"{world // replica} data-parallel ranks; accepted: {share * at_once} or more"
        )
    length = sequence_length(recipe.data.path)
    if teacher is not None:
        check_teacher_layout(recipe, teacher, length)
    if parallel.sequence_parallel and length % parallel.tensor:
        raise LayoutError(
            f"student.parallel.sequence_parallel needs samples of a multiple of {parallel.tensor} "
            f"tokens; the shards of {recipe.data.path} have {length}"
        )
