"""The pair of the smoke recipes, 135 million parameters and a part of them, in three layouts."""

from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.config.resolve import recipe_text, resolve_recipe
from tests.e2e.training import curve, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TOLERANCE = 1e-4  # fp32: what the layouts are held to
LAYOUTS = {"tp1": (1, []), "tp3": (3, ["tensor=3"]), "pp2": (2, ["pipeline=2"])}


def run_layout(folder: Path, data: Path, teacher: Path, name: str) -> list[dict[str, Any]]:
    from ekd_nemo.data.build import build

    world, parallel = LAYOUTS[name]
    overrides = [
        "train.steps=4",
        "train.global_batch_size=2",
        "train.micro_batch_size=1",
        "train.val_interval=4",
        "train.val_samples=4",
        f"data.path={data}",
        f"teacher.path={teacher}",
        f"data.build.tokenizer={teacher}",
        *(f"student.parallel.{each}" for each in parallel),
    ]
    recipe = resolve_recipe("smoke_response", overrides).recipe
    assert recipe.data.build is not None
    build(recipe.data.build, data)
    folder.mkdir()
    (folder / "recipe.yaml").write_text(recipe_text(recipe))
    return train(folder, world)


@pytest.fixture(scope="module")
def one_rank(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tmp_path_factory.mktemp("smoke")
    return base, run_layout(base / "tp1", base / "data", teacher_folder, "tp1")


@pytest.mark.parametrize("name", ["tp3", "pp2"])
def test_layout_gives_the_curve_of_one_rank(name: str, teacher_folder: Path, one_rank: Any) -> None:
    base, expected = one_rank
    found = run_layout(base / name, base / "data", teacher_folder, name)
    for key in ("loss", "ce", "response_forward_kl", "grad_norm", "val_ce", "val_kl_to_teacher"):
        assert curve(found, key) == pytest.approx(curve(expected, key), rel=TOLERANCE), key
