"""The parts of training that need no engine: schedule, coordinates, checks, the log."""

import json
from pathlib import Path

import pytest

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.placement import student_ranks
from ekd_nemo.config.recipe import Optimizer, Parallel, Recipe
from ekd_nemo.errors import ConfigError, LayoutError, RunDirError
from ekd_nemo.models import train
from ekd_nemo.models.phases import coordinates
from tests.e2e.training import STUDENT, TEACHER, make_pair, make_run


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("recipe")
    run = make_run(folder / "run", make_pair(folder / "pair"))
    return train.read_resolved(run / "recipe.yaml")


def changed(recipe: Recipe, **sections) -> Recipe:
    data = recipe.model_dump()
    for name, values in sections.items():
        data[name] = data[name] | values
    return Recipe.model_validate(data)


def test_learning_rate_warms_up_and_falls_to_the_floor() -> None:
    from ekd_nemo.models.optimizer import lr_at

    optimizer = Optimizer(lr=1.0, min_lr=0.1, warmup_steps=3)
    rates = [lr_at(step, optimizer, 8) for step in range(8)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[5] == pytest.approx(0.55)  # half way between peak and floor
    assert rates[7] == pytest.approx(0.1)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_constant_schedule_stays() -> None:
    from ekd_nemo.models.optimizer import lr_at

    optimizer = Optimizer(lr=2.0, schedule="constant", warmup_steps=1)
    assert [lr_at(step, optimizer, 4) for step in range(4)] == [1.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("tensor", "pipeline", "world"), [(1, 1, 3), (2, 2, 8), (3, 1, 6), (1, 4, 8)]
)
def test_coordinates_are_megatrons(tensor: int, pipeline: int, world: int) -> None:
    from megatron.core.parallel_state import RankGenerator

    data = world // (tensor * pipeline)
    ranks = RankGenerator(tp=tensor, ep=1, dp=data, pp=pipeline, cp=1, order="tp-cp-ep-dp-pp")
    for axis, name in (("tensor", "tp"), ("pipeline", "pp"), ("data", "dp")):
        for group in ranks.get_ranks(name):
            for place, rank in enumerate(group):
                found = coordinates(rank, world, Parallel(tensor=tensor, pipeline=pipeline))
                assert found[axis] == place


def check(recipe: Recipe, world: int = 1, teacher: Architecture = TEACHER) -> None:
    train.check(recipe, STUDENT, teacher, student_ranks(recipe, world))


def test_sound_recipe_passes(recipe: Recipe) -> None:
    check(recipe)
    check(changed(recipe, student={"parallel": {"tensor": 2, "pipeline": 2}}), world=8)


@pytest.mark.parametrize(
    ("student", "world", "says"),
    [
        ({"parallel": {"tensor": 3}}, 3, "tensor=3"),
        ({"parallel": {"pipeline": 4}}, 4, "pipeline=4"),
        ({"parallel": {"tensor": 2}}, 3, "a multiple of 2"),
        ({}, 3, "global_batch_size 4"),
    ],
)
def test_layout_that_does_not_fit_is_one_line(recipe: Recipe, student, world, says) -> None:
    with pytest.raises(LayoutError, match=says) as caught:
        check(changed(recipe, student=student), world)
    assert "\n" not in str(caught.value)


def test_too_few_samples_to_validate_on_are_refused(recipe: Recipe) -> None:
    with pytest.raises(LayoutError, match=r"train\.val_samples 3 .* accepted: 4 or more"):
        check(changed(recipe, train={"val_samples": 3, "micro_batch_size": 4}))


def test_other_vocabulary_is_refused(recipe: Recipe) -> None:
    from dataclasses import replace

    with pytest.raises(ConfigError, match="has 500 entries, the teacher's 499"):
        check(recipe, teacher=replace(TEACHER, vocab_size=499))


def test_more_rows_than_ids_are_no_other_vocabulary(recipe: Recipe) -> None:
    from dataclasses import replace

    check(recipe, teacher=replace(TEACHER, vocab_size=501))


def test_folder_without_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"recipe\.yaml"):
        train.main(["--run", str(tmp_path)])


def test_tokens_of_repeated_steps_count_once(recipe: Recipe, tmp_path: Path) -> None:
    from ekd_nemo.models.training_log import StepRecord, TrainingLog

    def record(step: int, tokens: int) -> StepRecord:
        return StepRecord(step, {"ce": 1.0}, 1.0, 0.1, None, tokens, tokens, 0.5)

    path = tmp_path / "train.jsonl"
    log = TrainingLog(path, recipe, attempt=1, speaks=True)
    log.begin(0)
    for step in (1, 2, 3):
        log.step(record(step, 10))
    log.close()
    log = TrainingLog(path, recipe, attempt=2, speaks=True)
    log.begin(2)  # the checkpoint of step 2
    log.step(record(3, 10))
    log.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["tokens_total"]) for line in found] == [
        (1, 10),
        (2, 20),
        (3, 30),
        (3, 30),
    ]
    assert found[0]["grad_norm"] is None


def test_silent_rank_writes_nothing(recipe: Recipe, tmp_path: Path) -> None:
    from ekd_nemo.models.training_log import TrainingLog

    log = TrainingLog(tmp_path / "train.jsonl", recipe, attempt=1, speaks=False)
    log.begin(0)
    log.say("x")
    log.close()
    assert not (tmp_path / "train.jsonl").exists()
