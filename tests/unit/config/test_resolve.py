"""From a name to a recipe: search order, composition, errors with a place."""

from pathlib import Path

import pytest

from ekd_nemo.config.resolve import (
    PACKAGED_RECIPES,
    find_recipe,
    list_recipes,
    read_resolved,
    recipe_folders,
    recipe_text,
    resolve_recipe,
)
from ekd_nemo.errors import ConfigError

BASE = """\
name: base
method: response
teacher: {path: models/teacher}
student:
  init:
    source: checkpoint
    path: models/student
data: {path: data/shards}
objective:
  alpha: 0.5
  response: {temperature: 2.0}
optimizer: {lr: 1e-4}
train:
  steps: 10
  global_batch_size: 8
"""
CHILD = """\
base: base
name: child
objective:
  response:
    temperature: 1.0
train:
  steps: 20
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "child.yaml").write_text(CHILD)
    return tmp_path


def test_resolves_and_fills_in_defaults(folder: Path) -> None:
    resolved = resolve_recipe("base", folders=[folder])
    assert resolved.recipe.optimizer.lr == 1e-4
    assert resolved.recipe.train.micro_batch_size == 1
    assert resolved.source == folder / "base.yaml"


def test_a_recipe_lies_over_its_base(folder: Path) -> None:
    resolved = resolve_recipe("child", ["train.steps=30"], [folder])
    recipe = resolved.recipe
    assert (recipe.name, recipe.train.steps, recipe.train.global_batch_size) == ("child", 30, 8)
    assert recipe.objective.response is not None
    assert recipe.objective.response.temperature == 1.0
    assert recipe.objective.alpha == 0.5
    assert resolved.origins[("train", "steps")] == "--set train.steps=30"
    assert resolved.origins[("train", "global_batch_size")] == f"{folder / 'base.yaml'}:15"
    assert (
        resolved.origins[("objective", "response", "temperature")] == f"{folder / 'child.yaml'}:5"
    )


def test_a_circle_of_bases_is_refused(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE + "base: child\n")
    with pytest.raises(
        ConfigError, match=r"base\.yaml:16: base goes in a circle: child -> base -> child"
    ):
        resolve_recipe("child", folders=[folder])


def test_an_unknown_base_is_named(folder: Path) -> None:
    (folder / "child.yaml").write_text("base: nothing\nname: child\n")
    with pytest.raises(
        ConfigError,
        match=r"child\.yaml:1: base: recipe nothing is not known; accepted: base, child",
    ):
        resolve_recipe("child", folders=[folder])


def test_several_bases_lie_in_the_order_of_the_list(folder: Path) -> None:
    (folder / "_quick.yaml").write_text("train: {steps: 3, val_interval: 7}\n")
    (folder / "child.yaml").write_text("base: [base, _quick]\nname: child\ntrain: {steps: 5}\n")
    resolved = resolve_recipe("child", folders=[folder])
    train = resolved.recipe.train
    assert (train.steps, train.val_interval, train.global_batch_size) == (5, 7, 8)
    assert resolved.origins[("train", "val_interval")] == f"{folder / '_quick.yaml'}:1"
    assert "_quick" not in list_recipes([folder])


def test_parts_may_share_a_base(folder: Path) -> None:
    for name in ("_a", "_b"):
        (folder / f"{name}.yaml").write_text("base: base\n")
    (folder / "child.yaml").write_text("base: [_a, _b]\nname: child\n")
    assert resolve_recipe("child", folders=[folder]).recipe.train.steps == 10


VARIANTS = """\
base: base
name: child
variants:
  long: {train: {steps: 99}, seed: 7}
  cached:
    teacher: {placement: cached, cache: {path: c}}
"""


def test_variants_are_put_on_in_order_and_named(folder: Path) -> None:
    (folder / "child.yaml").write_text(VARIANTS)
    plain = resolve_recipe("child", folders=[folder])
    assert plain.variants == ("long", "cached")
    assert plain.recipe.train.steps == 10
    both = resolve_recipe("child+long+cached", ["train.steps=98"], [folder])
    assert both.recipe.name == "child-long-cached"
    assert (both.recipe.train.steps, both.recipe.seed) == (98, 7)
    assert both.recipe.teacher is not None
    assert both.recipe.teacher.path == "models/teacher"
    assert both.recipe.teacher.placement == "cached"
    assert both.origins[("seed",)] == f"{folder / 'child.yaml'}:4"
    assert both.place("teacher.placement") == f"{folder / 'child.yaml'}:6"


def test_variants_are_merged_through_bases(folder: Path) -> None:
    (folder / "base.yaml").write_text(
        BASE + "variants: {long: {train: {steps: 50, log_interval: 5}}}\n"
    )
    (folder / "child.yaml").write_text(
        "base: base\nname: child\nvariants: {long: {train: {steps: 60}}}\n"
    )
    train = resolve_recipe("child+long", folders=[folder]).recipe.train
    assert (train.steps, train.log_interval) == (60, 5)
    by_path = resolve_recipe(f"{folder / 'child.yaml'}+long", folders=[])
    assert by_path.recipe.train == train


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("child+fast", VARIANTS, r"child\.yaml: variant fast is not known; accepted: long, cached"),
        (
            "base+fast",
            "",
            r"base\.yaml: variant fast is not known; accepted: none, it has no variants",
        ),
        (
            "child",
            "base: base\nname: child\nvariants: [a]\n",
            r"child\.yaml:3: variants is a mapping",
        ),
        (
            "child",
            "base: 3\nname: child\n",
            r"child\.yaml:1: base must be the name of another recipe",
        ),
        (
            "child+cached",
            VARIANTS.replace("cache: {path: c}", "cahce: {}"),
            r"child\.yaml:6: teacher\.cahce is not a key of teacher; did you mean cache\?",
        ),
    ],
)
def test_a_variant_at_fault_is_named(folder: Path, name: str, text: str, message: str) -> None:
    if text:
        (folder / "child.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_recipe(name, folders=[folder])
    assert "\n" not in str(caught.value)


BROKEN = [
    (
        "alpha: 0.5",
        "alhpa: 0.5",
        r"base\.yaml:10: objective\.alhpa is not a key of objective; did you mean alpha\? accepted: alpha, w_ce",
    ),
    (
        "method: response",
        "methode: response",
        r"base\.yaml:2: methode is not a key of the recipe; did you mean method\?",
    ),
    (
        "method: response",
        "method: respons",
        r"base\.yaml:2: method is \"respons\"; accepted: 'sft', 'response'",
    ),
    (
        "steps: 10",
        "steps: ten",
        r"base\.yaml:14: train\.steps is \"ten\"; input should be a valid integer",
    ),
    (
        "steps: 10",
        "steps: true",
        r"base\.yaml:14: train\.steps is true; input should be a valid integer",
    ),
    ("steps: 10", "steps: 0", r"base\.yaml:14: train\.steps is 0; input should be greater than 0"),
    (
        "  steps: 10\n",
        "",
        r"base\.yaml:13: train\.steps is missing from train; its keys: steps, global_batch_size",
    ),
    (
        "global_batch_size: 8",
        "global_batch_size: 8\n  micro_batch_size: 3",
        r"base\.yaml:13: train: global_batch_size 8 must be a multiple",
    ),
    ("optimizer: {lr: 1e-4}", "optimizer: 1e-4", r"base\.yaml:12: optimizer is 0\.0001; "),
    (
        "teacher: {path: models/teacher}\n",
        "",
        r"base\.yaml: the recipe: method response .* needs teacher",
    ),
    (
        "name: base",
        "name: bass",
        r"base\.yaml:1: name is bass; accepted: base, as the file is called",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), BROKEN)
def test_an_error_is_one_line_with_its_place(
    folder: Path, old: str, new: str, message: str
) -> None:
    assert old in BASE
    (folder / "base.yaml").write_text(BASE.replace(old, new))
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_recipe("base", folders=[folder])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "objective.temprature=2",
            r"--set objective\.temprature=2: objective\.temprature is not a key of objective; ",
        ),
        (
            "objektive.alpha=1",
            r"--set objektive\.alpha=1: objektive is not a key of the recipe; did you mean objective\?",
        ),
        (
            "objective.response.temp=2",
            r"objective\.response\.temp is not a key of .*; .*accepted: kind, temperature, beta, support, k,",
        ),
        (
            "train.steps=0",
            r"--set train\.steps=0: train\.steps is 0; input should be greater than 0",
        ),
        ("name=other", r"--set name=other: name is other; accepted: base"),
        (
            "data.build={tokenizer: t, sources: [{kind: jsonl, path: x}]}",
            r"data\.build\.sources\.0\.path is not a key of data\.build\.sources\.0; did you mean paths\? "
            r"accepted: weight, max_documents, kind, paths",
        ),
        ("data.build={tokenizer: t, sources: [{kind: csv}]}", r"data\.build\.sources\.0.*'csv'"),
        (
            "student.parallel.sequence_parallel=true",
            r"student\.parallel: sequence_parallel goes with a tensor of 2 or more",
        ),
        (
            "student.init={source: teacher_layers, keep_layers: [3, 1]}",
            r"student\.init: keep_layers takes each layer once, in ascending order",
        ),
    ],
)
def test_an_override_at_fault_is_named(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_recipe("base", [override], [folder])


def test_unknown_recipe_lists_the_known_ones(folder: Path) -> None:
    with pytest.raises(ConfigError, match="recipe bas is not known; accepted: base, child"):
        resolve_recipe("bas", folders=[folder])
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        find_recipe("none.yaml", [folder])


def test_the_users_folder_comes_first(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    second = tmp_path_factory.mktemp("second")
    for name in ("base", "other"):
        (second / f"{name}.yaml").write_text(BASE)
    assert list_recipes([folder, second]) == {
        "base": folder / "base.yaml",
        "child": folder / "child.yaml",
        "other": second / "other.yaml",
    }


def test_recipe_folders(tmp_path: Path) -> None:
    assert recipe_folders(tmp_path / "none") == (PACKAGED_RECIPES,)
    assert recipe_folders(tmp_path) == (tmp_path, PACKAGED_RECIPES)
    assert recipe_folders(PACKAGED_RECIPES) == (PACKAGED_RECIPES,)


def test_the_packaged_recipes_are_found() -> None:
    assert {"smoke_sft", "smoke_response", "sft_8b", "response_70b_to_8b"} <= set(
        list_recipes([PACKAGED_RECIPES])
    )


def test_the_text_is_read_back_as_the_same_recipe(folder: Path) -> None:
    recipe = resolve_recipe("child", folders=[folder]).recipe
    path = folder / "resolved.yaml"
    path.write_text(recipe_text(recipe))
    assert read_resolved(path) == recipe
    assert recipe_text(read_resolved(path)) == path.read_text()
