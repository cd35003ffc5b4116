"""On which ranks the teacher and the student stand, and whether they fit there."""

from ekd_nemo.config.architecture import Architecture, check_layout, padded_vocab
from ekd_nemo.config.recipe import Parallel, Recipe
from ekd_nemo.errors import LayoutError


def teacher_parallel(recipe: Recipe) -> Parallel | None:
    """The teacher's own layout, or the student's without interleaving; None if no rank holds it."""
    teacher = recipe.teacher
    if teacher is None or teacher.placement == "cached":
        return None
    if teacher.parallel is not None:
        return teacher.parallel
    return recipe.student.parallel.model_copy(update={"virtual_pipeline": None})


def stands_alike(recipe: Recipe, student: Architecture, teacher: Architecture) -> bool:
    """Whether a shared teacher's parts are where the student's are, stay there, and its head is cut at the same ids."""
    assert recipe.teacher is not None
    own = recipe.student.parallel.model_copy(update={"virtual_pipeline": None})
    if recipe.teacher.placement != "shared" or recipe.teacher.offload:
        return False
    rows = {padded_vocab(each.vocab_size, own.tensor) for each in (student, teacher)}
    return teacher_parallel(recipe) == own and len(rows) == 1


def stage_of_layer(layer: int, num_layers: int, pipeline: int, virtual: int | None = None) -> int:
    """The pipeline stage that holds a layer, both from 0, where stages hold equally many layers.

    Interleaved, the model's equal chunks are dealt to the stages in turn.
    """
    chunk = layer // (num_layers // (pipeline * (virtual or 1)))
    return chunk % pipeline


def teacher_ranks(recipe: Recipe) -> int:
    """Ranks that are the teacher's alone."""
    teacher = recipe.teacher
    return teacher.split.ranks if teacher is not None and teacher.split is not None else 0


def student_ranks(recipe: Recipe, world: int) -> int:
    """Those of all ranks that are the student's: the first ones.

    Raises: LayoutError, in one line, if the ranks do not hold whole copies of student and teacher.
    """
    alone = teacher_ranks(recipe)
    ranks, parallel = world - alone, recipe.student.parallel
    copy = parallel.tensor * parallel.pipeline
    if ranks < 1 or ranks % copy:
        less = f" less the teacher's {alone}" if alone else ""
        raise LayoutError(
            f"{world} ranks{less} cannot hold copies of tensor {parallel.tensor} x pipeline "
            f"{parallel.pipeline}; accepted: a multiple of {copy}"
            + (f", and {alone} for the teacher" if alone else "")
        )
    _check_teacher_ranks(recipe, alone or ranks)
    return ranks


def _check_teacher_ranks(recipe: Recipe, ranks: int) -> None:
    parallel = teacher_parallel(recipe)
    if parallel is None:
        return
    if parallel.virtual_pipeline is not None:
        raise LayoutError(
            "teacher.parallel.virtual_pipeline is set; a teacher only runs forward, which "
            "interleaving does not speed up: accepted is none"
        )
    copy = parallel.tensor * parallel.pipeline
    if ranks % copy:
        key = "teacher.split.ranks" if teacher_ranks(recipe) else "the student's ranks"
        raise LayoutError(
            f"teacher.parallel: {ranks} ranks ({key}) cannot hold copies of tensor "
            f"{parallel.tensor} x pipeline {parallel.pipeline}; accepted: a multiple of {copy}"
        )


def check_teacher_layout(recipe: Recipe, teacher: Architecture, sequence_length: int) -> None:
    """Raise unless the teacher can be cut into its layout.

    Raises: LayoutError, in one line.
    """
    parallel = teacher_parallel(recipe)
    if parallel is None:
        return
    check_layout(teacher, parallel.tensor, parallel.pipeline, "teacher")
    if parallel.sequence_parallel and sequence_length % parallel.tensor:
        raise LayoutError(
            f"teacher.parallel.sequence_parallel needs samples of a multiple of {parallel.tensor} "
            f"tokens; the shards have {sequence_length}"
        )
