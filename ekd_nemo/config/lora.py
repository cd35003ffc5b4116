"""What low-rank adapters go with."""

from ekd_nemo.config.recipe import Recipe


def lora_misfit(recipe: Recipe) -> tuple[str, str] | None:
    """The key at fault and what is wrong with it and accepted, in one line; None if adapters can be trained."""
    lora, parallel = recipe.student.lora, recipe.student.parallel
    if lora is None:
        return None
    if lora.rank % parallel.tensor:
        return (
            "student.lora.rank",
            f"{lora.rank} is not divided by student.parallel.tensor {parallel.tensor}; accepted: multiples of it",
        )
    relation = recipe.objective.relation
    if lora.dropout and relation is not None and relation.scope == "batch":
        return (
            "student.lora.dropout",
            f"{lora.dropout}, with the exact relation loss, whose two forward passes must be alike; accepted: 0",
        )
    return None
