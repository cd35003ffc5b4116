"""Whether an objective and a layout fit the models and batches of a recipe: plain arithmetic."""

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.lora import lora_misfit
from ekd_nemo.config.objective import FeatureLoss, RelationLoss, ResponseLoss
from ekd_nemo.config.recipe import Recipe


def misfit(
    recipe: Recipe, student: Architecture, teacher: Architecture | None
) -> tuple[str, str] | None:
    """The first thing that does not fit.

    Args:
        recipe: checked by its schema.
        student: the student's decoder.
        teacher: the teacher's, if the recipe names one.

    Returns:
        The key at fault and what is wrong with it and accepted, in one line; None if all fits.
    """
    objective = recipe.objective
    if objective.feature is not None and teacher is not None:
        found = _feature(objective.feature, student, teacher)
        if found is not None:
            return found
    if objective.relation is not None:
        found = _relation(objective.relation, recipe.train.global_batch_size)
        if found is not None:
            return found
    if objective.response is not None and objective.response.support != "dense":
        found = _support(objective.response, recipe, student)
        if found is not None:
            return found
    return lora_misfit(recipe) or _interleaving(recipe, student)


def _feature(
    section: FeatureLoss, student: Architecture, teacher: Architecture
) -> tuple[str, str] | None:
    seen: set[tuple[int, int]] = set()
    for number, pair in enumerate(section.pairs or ()):
        key = f"objective.feature.pairs.{number}"
        for who, model in (("teacher", teacher), ("student", student)):
            layer = getattr(pair, f"{who}_layer")
            if layer >= model.num_layers:
                return (
                    f"{key}.{who}_layer",
                    f"the {who} has no layer {layer}; accepted: 0 to {model.num_layers - 1}",
                )
        layers = (pair.teacher_layer, pair.student_layer)
        if layers in seen:
            return key, f"the pair of layers {layers[0]} and {layers[1]} stands there twice"
        seen.add(layers)
    if section.projector == "none" and student.hidden_size != teacher.hidden_size:
        return (
            "objective.feature.projector",
            f"none, with a student of width {student.hidden_size} and a teacher of width "
            f"{teacher.hidden_size}; accepted: linear",
        )
    return None


def _relation(section: RelationLoss, sequences: int) -> tuple[str, str] | None:
    least = 3 if section.weight_angle else 2
    if section.scope == "batch" and sequences < least:
        return (
            "train.global_batch_size",
            f"{sequences} sample(s) may hold too few sequences to relate; accepted with "
            f"{'angles' if section.weight_angle else 'relations'} of the batch: {least} or more",
        )
    return None


def _support(
    section: ResponseLoss, recipe: Recipe, student: Architecture
) -> tuple[str, str] | None:
    if recipe.teacher is not None and recipe.teacher.placement != "cached":
        return (
            "objective.response.support",
            f"{section.support} with a teacher that runs beside the student, whose whole distribution costs "
            "no more; accepted: dense, or teacher.placement cached",
        )
    if section.k > student.vocab_size:
        return (
            "objective.response.k",
            f"{section.k} ids of a vocabulary of {student.vocab_size}; accepted: up to {student.vocab_size}",
        )
    return None


def _interleaving(recipe: Recipe, student: Architecture) -> tuple[str, str] | None:
    parallel = recipe.student.parallel
    if parallel.virtual_pipeline is None:
        return None
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if student.num_layers % chunks:
        return (
            "student.parallel.virtual_pipeline",
            f"{parallel.virtual_pipeline} chunks on each of {parallel.pipeline} stages do not divide the "
            f"student's {student.num_layers} layers",
        )
    return None
