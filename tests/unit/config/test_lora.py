"""What adapters are refused with, in one line each."""

import pytest

from ekd_nemo.config.fit import misfit
from ekd_nemo.config.known_models import KNOWN_MODELS
from ekd_nemo.config.resolve import PACKAGED_RECIPES, resolve_recipe

STUDENT = KNOWN_MODELS["meta-llama/Llama-3.1-8B-Instruct"]
TEACHER = KNOWN_MODELS["meta-llama/Llama-3.1-70B-Instruct"]


def found(*overrides: str) -> tuple[str, str] | None:
    recipe = resolve_recipe("relation_70b_to_8b+lora", overrides, [PACKAGED_RECIPES]).recipe
    return misfit(recipe, STUDENT, TEACHER)


@pytest.mark.parametrize("override", ["student.lora.rank=2", "student.recompute=full"])
def test_the_shipped_variant_fits(override: str) -> None:
    assert found() is None
    assert found(override) is None


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("student.lora.rank=3", "student.lora.rank", "not divided by student.parallel.tensor 2"),
        ("student.lora.dropout=0.1", "student.lora.dropout", "two forward passes must be alike"),
    ],
)
def test_what_does_not_go_with_adapters(override: str, key: str, message: str) -> None:
    wrong = found(override)
    assert wrong is not None
    assert wrong[0] == key
    assert message in wrong[1]
