"""What low-rank adapters go with."""

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Recipe


def lora_misfit(recipe: Recipe, student: Architecture) -> tuple[str, str] | None:
    """The key at fault and what is wrong with it and accepted, in one line; None if adapters can be trained."""
    lora, parallel = recipe.student.lora, recipe.student.parallel
    if lora is None:
        return None
    if lora.rank % parallel.tensor:
        return (
            "student.lora.rank",
            f"{lora.rank} is not divided by student.parallel.tensor {parallel.tensor}; accepted: multiples of it",
        )
    if recipe.student.recompute == "full":
        # Megatron's recomputation makes no gradients where nothing that goes in needs one: below frozen embeddings.
        return (
            "student.recompute",
            "full recomputation gives adapters no gradients; accepted: none or selective",
        )
    if student.tied_embeddings and parallel.pipeline > 1:
        return (
            "student.parallel.pipeline",
            f"{parallel.pipeline}, with adapters and tied embeddings: Megatron sums the gradients of an embedding that "
            "is frozen; accepted: 1",
        )
    relation = recipe.objective.relation
    if lora.dropout and relation is not None and relation.scope == "batch":
        return (
            "student.lora.dropout",
            f"{lora.dropout}, with the exact relation loss, whose two forward passes must be alike; accepted: 0",
        )
    return None
