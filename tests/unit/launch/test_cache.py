"""The run that makes a cache, as the launcher sees it: its name, its steps, what is charged."""

from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.config.recipe import Recipe
from ekd_nemo.errors import ConfigError
from ekd_nemo.launch.cache import build_cache, cache_run, summary
from ekd_nemo.launch.cache_inputs import cache_inputs
from ekd_nemo.sources.cache_manifest import add_making
from tests.unit.sources.test_cache_fit import (
    DENSE,
    RELATION,
    TOP,
    Making,
    identity,
    recipe,
    store,
)


def changed(base: Recipe, **changes: Any) -> Recipe:
    return Recipe.model_validate(base.model_dump() | changes)


def making(run_id: str) -> Making:
    return Making(
        run_id=run_id,
        run="runs/x",
        energy_j=1234.5,
        energy_source="estimated",
        teacher_cache_j=1200.0,
        tokens=9,
        samples=2,
    )


def test_recipes_that_ask_for_the_same_share_the_run_that_makes_it(tmp_path: Path) -> None:
    base = recipe(tmp_path, TOP)
    same = changed(base, seed=9, train={"steps": 50, "global_batch_size": 8})
    assert cache_run(base, tmp_path) == cache_run(same, tmp_path)
    assert cache_run(base, tmp_path) != cache_run(recipe(tmp_path, DENSE), tmp_path)


def test_a_training_owes_to_whoever_made_its_cache(tmp_path: Path) -> None:
    store(tmp_path, identity("topk"))
    asked = recipe(tmp_path, TOP)
    assert [each.run_id for each in cache_inputs(asked)] == [None]
    add_making(tmp_path / "cache", making("cache-1"))
    add_making(tmp_path / "cache", making("cache-2"))
    found = cache_inputs(asked)
    assert [(each.kind, each.run_id) for each in found] == [
        ("cache", "cache-1"),
        ("cache", "cache-2"),
    ]
    shared = {"path": "t", "placement": "shared"}
    assert cache_inputs(changed(asked, teacher=shared)) == ()


def test_inspect_says_what_there_is_and_what_it_cost(tmp_path: Path) -> None:
    store(tmp_path, identity("topk"))
    assert "made by" not in "\n".join(summary(tmp_path / "cache"))
    add_making(tmp_path / "cache", making("cache-1"))
    text = "\n".join(summary(tmp_path / "cache"))
    assert "topk, 2 samples, 9 tokens" in text
    assert "k 8" in text
    assert "E_cache 1,234 J (estimated), 9 tokens" in text


def test_a_whole_cache_is_kept_and_nothing_is_started(tmp_path: Path) -> None:
    store(tmp_path, identity("topk"))
    said: list[str] = []
    build_cache(recipe(tmp_path, TOP), runs=tmp_path / "runs", say=said.append)
    assert said == [f"{tmp_path / 'cache'}: kept, it is whole"]
    assert not (tmp_path / "runs").exists()


def test_a_recipe_that_builds_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="accepted: embeddings, hidden"):
        build_cache(recipe(tmp_path, RELATION, "topk"), runs=tmp_path / "runs", say=print)
    base = recipe(tmp_path, TOP)
    no_build = changed(
        base, teacher={"path": "t", "placement": "cached", "cache": {"path": str(tmp_path / "c")}}
    )
    with pytest.raises(ConfigError, match=r"teacher\.cache\.build is not set"):
        build_cache(no_build, runs=tmp_path / "runs", say=print)
    shared = changed(base, teacher={"path": "t", "placement": "shared"})
    with pytest.raises(ConfigError, match=r"no teacher\.cache"):
        build_cache(shared, runs=tmp_path / "runs", say=print)
    assert not (tmp_path / "runs").exists()
