"""What a training owes to its teacher's cache."""

from pathlib import Path

from ekd_nemo.config.recipe import Recipe
from ekd_nemo.errors import ConfigError
from ekd_nemo.records.identity import Input
from ekd_nemo.sources.cache_manifest import read_made


def cache_folder(recipe: Recipe) -> Path:
    """Where the cache of a recipe is, or will be.

    Raises: ConfigError if the recipe has none.
    """
    section = None if recipe.teacher is None else recipe.teacher.cache
    if section is None:
        raise ConfigError(
            f"recipe {recipe.name}: no teacher.cache; accepted: a recipe with teacher.placement "
            "cached and teacher.cache.path"
        )
    return Path(section.path)


def cache_inputs(recipe: Recipe) -> tuple[Input, ...]:
    """What a training run owes to its teacher's cache: who made it; none for other placements."""
    if recipe.teacher is None or recipe.teacher.placement != "cached":
        return ()
    folder = cache_folder(recipe)
    runs = [making.run_id for making in read_made(folder).runs]
    return tuple(Input(kind="cache", path=str(folder), run_id=run_id) for run_id in runs or [None])
