"""Plans: argv of every step, hostile paths, and what does not fit."""

import shlex
import sys
from pathlib import Path

import pytest

from ekd_nemo.config.resolve import ResolvedRecipe, resolve_recipe
from ekd_nemo.errors import ConfigError, LayoutError
from ekd_nemo.launch.plan import argument, plan_launch
from ekd_nemo.records.rundir import RunDir


def test_the_steps_of_one_rank(tiny: ResolvedRecipe) -> None:
    plan = plan_launch(tiny, RunDir(Path("the runs/x")))
    assert [step.name for step in plan.preparation] == ["data"]
    assert [step.name for step in plan.steps] == ["train", "export"]
    train, export = plan.steps
    words = ("the runs/x/checkpoints/step_0000004", "the runs/x/hf", "--like=models/the teacher")
    assert export.argv[3:] == ("convert", "export", *words)
    assert train.argv == (sys.executable, "-m", "ekd_nemo.worker", "train", "--run", "the runs/x")
    assert (train.ranks, plan.world_size) == (1, 1)


def test_several_ranks_go_through_torchrun_on_the_loopback_device(here: Path) -> None:
    resolved = resolve_recipe("tiny", ["student.parallel.tensor=2", "evaluation.lm.tasks=[t]"])
    plan = plan_launch(resolved, RunDir(Path("runs/x")), nproc=4)
    train = plan.steps[0]
    assert train.argv == (
        *(
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--local-addr",
            "127.0.0.1",
        ),
        *("--nproc-per-node", "4", "-m", "--", "ekd_nemo.worker", "train", "--run", "runs/x"),
    )
    assert [step.name for step in plan.steps] == ["train", "export", "eval"]
    assert int(train.env["OMP_NUM_THREADS"]) >= 1


def test_odd_paths_stay_one_word(tiny: ResolvedRecipe) -> None:
    plan = plan_launch(tiny, RunDir(Path('it\'s $(x) "y"/run')))
    data = plan.preparation[0]
    assert data.argv[-2:] == ("--out", 'data/it\'s "odd"')
    for step in (*plan.preparation, *plan.steps):
        words = shlex.split(step.command())
        assert tuple(words[len(step.env) :]) == step.argv


@pytest.mark.parametrize("name", ["line\nbreak", "tab\there", "bell\x07"])
def test_control_characters_in_paths_are_refused(tiny: ResolvedRecipe, name: str) -> None:
    with pytest.raises(ConfigError, match="--runs: .* holds a line break or control character"):
        plan_launch(tiny, RunDir(Path(name) / "x"))


def test_a_path_with_a_dash_is_no_option() -> None:
    assert argument(Path("-x/y")) == "./-x/y"
    assert argument(Path("x-y")) == "x-y"


@pytest.mark.parametrize(
    ("overrides", "nproc", "message"),
    [
        (
            ["student.parallel.tensor=2"],
            3,
            r"--nproc 3: one copy .* tensor 2 x pipeline 1 = 2 ranks; accepted: multiples of 2",
        ),
        (
            [],
            3,
            r"--nproc 3: 3 copies .* do not divide train\.global_batch_size 4; accepted: multiples of 3",
        ),
        (
            ["train.val_samples=1"],
            2,
            r"train\.val_samples 1 leaves no whole microbatch .* 2 copies of the student; accepted: 2 or more",
        ),
    ],
)
def test_ranks_that_do_not_fit(here: Path, overrides: list[str], nproc: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        plan_launch(resolve_recipe("tiny", overrides), RunDir(Path("runs/x")), nproc)


def test_describe_names_every_command_and_file(tiny: ResolvedRecipe) -> None:
    plan = plan_launch(tiny, RunDir(Path("runs/x")))
    text = plan.describe()
    for step in (*plan.preparation, *plan.steps):
        assert f"  {step.command()}\n" in text
    assert "runs/x/run.json" in text
    assert "-m ekd_nemo.telemetry.sampler --run " in text
    assert not Path("runs").exists()


SPLIT = ["teacher.placement=split", "teacher.split.ranks=2", "student.parallel.tensor=2"]


@pytest.mark.parametrize(("nproc", "ranks"), [(None, 4), (4, 4), (6, 6)])
def test_a_split_teachers_ranks_are_counted_in(here: Path, nproc: int | None, ranks: int) -> None:
    resolved = resolve_recipe("tiny", SPLIT)
    assert plan_launch(resolved, RunDir(Path("runs/x")), nproc).world_size == ranks


@pytest.mark.parametrize("nproc", [2, 3, 5])
def test_ranks_that_leave_no_whole_student_beside_a_split_teacher(here: Path, nproc: int) -> None:
    with pytest.raises(
        LayoutError, match="beside the teacher's 2; accepted: 2 and a multiple of 2"
    ):
        plan_launch(resolve_recipe("tiny", SPLIT), RunDir(Path("runs/x")), nproc)


def test_the_benchmark_of_inference_comes_last(here: Path) -> None:
    asked = [
        "evaluation.lm.tasks=[t]",
        "evaluation.ept.batch_sizes=[1, 8]",
        "evaluation.teacher=false",
    ]
    plan = plan_launch(resolve_recipe("tiny", asked), RunDir(Path("runs/x")))
    assert [step.name for step in plan.steps] == ["train", "export", "eval", "ept"]
    ept = plan.steps[-1]
    assert ept.argv[1:6] == ("-m", "ekd_nemo", "eval", "ept", "runs/x")
    assert {"--batch-sizes=1,8", "--meter=estimate", "--student-only"} <= set(ept.argv)
    assert ept.products == (Path("runs/x/ept.json"),)
