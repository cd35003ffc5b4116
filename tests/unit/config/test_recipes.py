"""The shipped recipes: every one and every variant resolves, and nothing is said twice."""

from itertools import combinations
from typing import Any

import pytest

from ekd_nemo.config.known_models import KNOWN_MODELS
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import PACKAGED_RECIPES, list_recipes, resolve_recipe

FOLDERS = [PACKAGED_RECIPES]
NAMES = sorted(list_recipes(FOLDERS))
METHODS = ("response", "feature", "relation", "combined")
PLACEMENTS = ("", "+split", "+cached")
# Which keys tell the Qwen pair from the Llama pair; everything else must be the same.
OWN_KEYS = {
    "name",
    "description",
    "baseline",
    "teacher.path",
    "teacher.cache.path",
    "student.init.path",
    "data.path",
    "data.build.tokenizer",
    "objective.feature.pairs",
}


def resolve(name: str) -> Recipe:
    return resolve_recipe(name, folders=FOLDERS).recipe


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_of_variants_resolves(name: str) -> None:
    variants = resolve_recipe(name, folders=FOLDERS).variants
    for count in range(len(variants) + 1):
        for chosen in combinations(variants, count):
            if {"split", "cached"} <= set(chosen):
                continue  # one placement at a time; the second would replace the first
            recipe = resolve("+".join([name, *chosen]))
            assert recipe.name == "-".join([name, *chosen])
            assert (recipe.student.lora is not None) == ("lora" in chosen)
            assert (recipe.student.precision == "fp8") == ("fp8" in chosen)
            if recipe.teacher is not None and recipe.method != "sft":
                own = resolve(name).teacher
                assert own is not None
                placement = next(
                    (each for each in chosen if each in ("split", "cached")), own.placement
                )
                assert recipe.teacher.placement == placement
                assert (recipe.teacher.precision == "fp8") == ("fp8" in chosen)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_pairs_differ_in_their_models_alone(method: str, placement: str) -> None:
    llama, qwen = (
        _flat(resolve(f"{method}_{pair}{placement}").model_dump(mode="json"))
        for pair in ("70b_to_8b", "72b_to_7b")
    )
    assert llama.keys() == qwen.keys()
    assert {key for key in llama if llama[key] != qwen[key]} <= OWN_KEYS


@pytest.mark.parametrize("pair", ["70b_to_8b", "72b_to_7b"])
def test_methods_of_a_pair_train_the_same_student_on_the_same_tokens(pair: str) -> None:
    recipes = [resolve(f"{method}_{pair}") for method in METHODS]
    recipes.append(resolve(recipes[0].baseline or ""))
    for section in ("student", "data", "optimizer", "train", "evaluation", "repeats", "seed"):
        values = {repr(getattr(recipe, section)) for recipe in recipes}
        assert len(values) == 1, section


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("smoke")])
def test_cluster_recipes_are_repeated_and_their_models_known(name: str) -> None:
    recipe = resolve(name)
    assert recipe.repeats == 5
    assert recipe.student.init.path in KNOWN_MODELS
    assert recipe.teacher is None or recipe.teacher.path in KNOWN_MODELS
    assert recipe.data.build is not None
    assert recipe.data.build.sequence_length == 8192


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
