"""The plans of the study, and the commands that they become."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from ekd_nemo.config.resolve import resolve_recipe
from ekd_nemo.errors import ConfigError
from tools.study.commands import CACHE, TRAINING, Study
from tools.study.plan import PLANS as PLANS_FILE
from tools.study.plan import Run, read_plan, runs_of

PLANS = ("full", "slice", "short")


def study(name: str, runs: Path) -> Study:
    methods, plan = read_plan(name)
    return Study(methods, plan, runs / name)


def settings(argv: tuple[str, ...]) -> list[str]:
    return [value for flag, value in pairwise(argv) if flag == "--set"]


@pytest.mark.parametrize("name", PLANS)
def test_every_training_is_a_recipe_that_resolves(name: str, tmp_path: Path) -> None:
    methods, _ = read_plan(name)
    seen: set[tuple[str, int]] = set()
    for run_id, command in study(name, tmp_path).all_commands():
        if command.what not in (TRAINING, CACHE):
            continue
        recipe = next(part for part in command.argv if part in methods.values())
        resolved = resolve_recipe(recipe, settings(command.argv)).recipe
        if command.what == TRAINING:
            assert f"-s{resolved.seed}" in run_id
            seen.add((recipe, resolved.seed))
    assert len(seen) == len(methods) * len(read_plan(name)[1].seeds)


@pytest.mark.parametrize("name", PLANS)
def test_all_methods_train_on_equal_tokens(name: str, tmp_path: Path) -> None:
    sizes = set()
    for _, command in study(name, tmp_path).all_commands():
        if command.what == TRAINING:
            recipe = next(part for part in command.argv if part.startswith("smoke_"))
            resolved = resolve_recipe(recipe, settings(command.argv)).recipe
            sizes.add((resolved.train.steps, resolved.train.global_batch_size, resolved.data.path))
    assert len(sizes) == 1


def test_only_distilling_methods_read_the_cache(tmp_path: Path) -> None:
    commands = study("full", tmp_path).all_commands()
    cached = {
        run: "teacher.placement=cached" in command.argv
        for run, command in commands
        if command.what == TRAINING
    }
    assert not cached["sft-s1"]
    assert not cached["response-live-s1"]
    assert all(cached[f"{method}-s2"] for method in ("response", "feature", "relation", "combined"))


def test_a_finished_training_is_not_run_again(tmp_path: Path) -> None:
    whole = study("short", tmp_path)
    model = tmp_path / "short" / "sft-s1" / "hf" / "config.json"
    model.parent.mkdir(parents=True)
    model.write_text("{}")
    done = {run: c.done for run, c in whole.all_commands() if c.what == TRAINING}
    assert done.pop("sft-s1")
    assert not any(done.values())


def test_there_is_a_page_of_figures_once_a_training_is_finished(tmp_path: Path) -> None:
    whole = study("short", tmp_path)
    assert whole.report(tmp_path / "page.html").done
    model = tmp_path / "short" / "sft-s1" / "hf" / "config.json"
    model.parent.mkdir(parents=True)
    model.write_text("{}")
    page = whole.report(tmp_path / "page.html")
    assert not page.done
    assert page.argv[-5:] == (
        "report",
        "build",
        str(tmp_path / "short"),
        "--out",
        str(tmp_path / "page.html"),
    )


def test_seeds_are_the_outer_loop(tmp_path: Path) -> None:
    methods, plan = read_plan("full")
    runs = runs_of(methods, plan)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert Run("response-live", 1) in runs


def test_variants_change_a_methods_recipe_alone(tmp_path: Path) -> None:
    commands = {
        run: c.argv for run, c in study("short", tmp_path).all_commands() if c.what == TRAINING
    }
    plain, even = commands["relation-s2"], commands["relation_even-s2"]
    assert "smoke_relation" in even
    assert set(settings(even)) - set(settings(plain)) == {"objective.alpha=0.97"}
    assert (
        resolve_recipe("smoke_relation", settings(even)).recipe.objective.weight_of("relation")
        == 0.97
    )


@pytest.mark.parametrize(
    ("variants", "word"),
    [
        ({"x": {"method": "none", "set": ["seed=1"]}}, "none"),
        ({"sft": {"method": "relation", "set": ["seed=1"]}}, "sft"),
    ],
)
def test_variants_of_no_method_and_taken_names_are_refused(
    variants: dict[str, object], word: str, tmp_path: Path
) -> None:
    document = yaml.safe_load(PLANS_FILE.read_text())
    document["plans"]["short"]["variants"] = variants
    path = tmp_path / "plans.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=word):
        read_plan("short", path)


def test_an_unknown_plan_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no plan ful; accepted: full, slice, short"):
        read_plan("ful")
