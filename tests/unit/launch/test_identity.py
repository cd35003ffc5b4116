"""Which run a launch is: resumed, refused or afresh; and one launch at a time."""

import multiprocessing
from pathlib import Path

import pytest

from ekd_nemo.config.resolve import ResolvedRecipe, resolve_recipe
from ekd_nemo.errors import RunDirError, UserError
from ekd_nemo.launch.identity import choose_run, only_launch
from ekd_nemo.launch.local import plan_local, write_run
from ekd_nemo.records.identity import read_identity
from ekd_nemo.records.rundir import RunDir

RUNS = Path("runs")


def test_the_same_recipe_is_the_same_run(tiny: ResolvedRecipe) -> None:
    first = choose_run(tiny.recipe, RUNS)
    assert first.path.name.startswith("tiny-")
    assert first.path.name.endswith("-s1234")
    assert write_run(plan_local(tiny, runs=RUNS)) == 1
    assert choose_run(tiny.recipe, RUNS) == first
    assert write_run(plan_local(tiny, runs=RUNS)) == 2
    identity = read_identity(first)
    assert [attempt.attempt for attempt in identity.attempts] == [1, 2]
    assert (identity.method, identity.seed, identity.attempts[0].world_size) == (
        "response",
        1234,
        1,
    )


def test_repeats_share_the_hash(tiny: ResolvedRecipe) -> None:
    other = choose_run(resolve_recipe("tiny", ["seed=7"]).recipe, RUNS).path.name
    assert other == choose_run(tiny.recipe, RUNS).path.name.replace("-s1234", "-s7")


def test_another_recipe_under_the_same_id_is_refused(tiny: ResolvedRecipe) -> None:
    write_run(plan_local(tiny, runs=RUNS, run_id="mine"))
    changed = resolve_recipe("tiny", ["train.steps=5", "seed=2"])
    with pytest.raises(
        RunDirError, match=r"seed is 1234 there, 2 here; train\.steps is 4 there, 5 here; .*--new"
    ):
        choose_run(changed.recipe, RUNS, "mine")


def test_new_takes_the_first_free_id(tiny: ResolvedRecipe) -> None:
    names: list[str] = []
    for _ in range(3):
        plan = plan_local(tiny, runs=RUNS, new=True)
        write_run(plan)
        names.append(plan.run.path.name)
    assert names == [names[0], f"{names[0]}-2", f"{names[0]}-3"]
    assert len(list(RUNS.iterdir())) == 3


@pytest.mark.parametrize("run_id", ["../x", "a/b", ".hidden", "with space", "line\nbreak", "-x"])
def test_an_id_is_a_plain_name(tiny: ResolvedRecipe, run_id: str) -> None:
    with pytest.raises(UserError, match="--run-id .*accepted: letters"):
        choose_run(tiny.recipe, RUNS, run_id)


def test_a_folder_that_is_not_a_run_is_left_alone(tiny: ResolvedRecipe) -> None:
    (RUNS / "mine").mkdir(parents=True)
    assert choose_run(tiny.recipe, RUNS, "mine").path == RUNS / "mine"
    (RUNS / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunDirError, match="exists and is not a run"):
        choose_run(tiny.recipe, RUNS, "mine")


def hold(path: Path, held: multiprocessing.Event, release: multiprocessing.Event) -> None:  # type: ignore[valid-type]
    with only_launch(RunDir(path)):
        held.set()
        release.wait(20)


def test_a_second_launch_of_a_run_is_refused(here: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(RUNS / "x", held, release))
    other.start()
    try:
        assert held.wait(10)
        with (
            pytest.raises(RunDirError, match=rf"another launch \(process {other.pid}\)"),
            only_launch(RunDir(RUNS / "x")),
        ):
            pass
        with only_launch(RunDir(RUNS / "y")):
            assert held.is_set()
    finally:
        release.set()
        other.join(10)
    with only_launch(RunDir(RUNS / "x")):
        assert other.exitcode == 0
