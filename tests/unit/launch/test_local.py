"""A launch from plan to closing line, with small processes in place of the heavy ones and the real sampler."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ekd_nemo.config.recipe import Lora
from ekd_nemo.config.resolve import ResolvedRecipe, resolve_recipe
from ekd_nemo.errors import EXIT_SAVED, RunError, UserError
from ekd_nemo.launch import local
from ekd_nemo.launch.history import STEPS, pending
from ekd_nemo.launch.identity import launch_folder
from ekd_nemo.launch.local import launch_local, plan_local
from ekd_nemo.launch.plan import Plan, Step
from ekd_nemo.launch.preparing import adopt
from ekd_nemo.metrics.ledger import ledger_of_run
from ekd_nemo.records.identity import read_identity
from ekd_nemo.records.rundir import RunDir
from tests.unit.launch.test_processes import SAVES, signal_when_there

RESUME = "ekd recipe launch tiny --local"


def writes(name: str, product: Path, ranks: int = 0) -> Step:
    code = (
        "import os, sys; from pathlib import Path; p = Path(sys.argv[1]); p.parent.mkdir(exist_ok=True);"
        "p.write_text(os.environ.get('EKD_ATTEMPT', '-') + ' ' + os.environ.get('EKD_DEVICE_UUIDS', '-'))"
    )
    return Step(
        name,
        f"does {name}",
        (sys.executable, "-c", code, str(product)),
        products=(product,),
        ranks=ranks,
    )


def script(name: str, code: str, *words: str, ranks: int = 0) -> Step:
    return Step(name, f"does {name}", (sys.executable, "-c", code, *words), ranks=ranks)


@pytest.fixture
def plan(tiny: ResolvedRecipe, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(local, "check_extras", lambda _: None)
    plan = plan_local(tiny, runs=Path("the runs"))
    return replace(
        plan,
        preparation=(writes("data", Path("shards")),),
        steps=(
            writes("train", plan.run.checkpoints / "x", ranks=1),
            writes("export", plan.run.hf / "config.json"),
        ),
    )


def launch(plan: Plan) -> tuple[int, list[str]]:
    said: list[str] = []
    return launch_local(plan, said.append, RESUME), said


def test_a_launch_runs_its_steps_once(plan: Plan) -> None:
    code, said = launch(plan)
    assert code == 0
    assert [line for line in said if line.startswith("[")] == [
        "[1/3] does data",
        "[2/3] does train",
        "[3/3] does export",
    ]
    assert (
        said[-1]
        == f"student {plan.run.hf}, figures: ekd metrics summarise 'the runs/{plan.run.run_id}'"
    )
    assert Path("shards").read_text() == "- -"
    attempt, uuids = plan.run.hf.joinpath("config.json").read_text().split()
    assert attempt == "1"
    devices = read_identity(plan.run).attempts[0].devices
    assert uuids in {device.uuid for device in devices}
    assert all(device.source == "estimated" for device in devices)
    steps = [json.loads(line) for line in (plan.run.logs / STEPS).read_text().splitlines()]
    assert [step["step"] for step in steps] == ["train", "export"]
    kinds = [
        json.loads(line)["kind"] for line in plan.run.power_files()[0].read_text().splitlines()
    ]
    assert (kinds[0], kinds[-1]) == ("start", "stop")

    code, said = launch(plan)
    assert (code, said[0]) == (0, f"{plan.run.run_id}: everything is done already")
    assert len(read_identity(plan.run).attempts) == 1


def test_building_shards_is_metered_as_a_phase_of_the_run(plan: Plan) -> None:
    slow = script("data", "import time; time.sleep(1.2)")
    launch(replace(plan, preparation=(slow,)))
    rows = [row for row in ledger_of_run(plan.run).rows if row.phase == "preprocess"]
    assert rows and all(row.in_run and row.attempt == 1 for row in rows)
    accelerators = [row for row in rows if row.role == "accelerator"]
    assert sum(row.duration_s for row in accelerators) >= 1.2
    assert sum(row.energy_j for row in accelerators) > 0
    assert not list(launch_folder(plan.run).glob("*.preprocess"))


def test_a_long_building_of_shards_keeps_what_its_sampler_has_packed(tmp_path: Path) -> None:
    """64 MiB of samples, an hour of eight GPUs, and a part becomes a segment."""
    scratch = RunDir(tmp_path / "launches" / "r.preprocess")
    scratch.telemetry.mkdir(parents=True)
    names = ["power-n.jsonl", "power-n.1.parquet", "power-n.2.jsonl", "marks-data.jsonl"]
    for name in names:
        (scratch.telemetry / name).write_text(name)
    run = RunDir(tmp_path / "r")
    run.path.mkdir()
    adopt(run, tmp_path / "launches", 2)
    assert sorted(file.read_text() for file in run.telemetry.iterdir()) == sorted(names)
    assert [len(files) for files in (run.power_files(), run.segment_files())] == [2, 1]
    assert not scratch.path.exists()


def test_finished_steps_are_skipped_unless_their_products_are_gone(plan: Plan) -> None:
    launch(plan)
    plan.run.hf.joinpath("config.json").unlink()
    assert [step.name for step in pending(plan.run, plan.steps)] == ["export"]
    _, said = launch(replace(plan, preparation=()))
    assert said[0] == "[1/1] does export"
    assert plan.run.hf.joinpath("config.json").read_text().startswith("2 ")


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        (
            "sys.stderr.write('error: x.jsonl:3: not JSON\\n'); sys.exit(2)",
            UserError,
            r"train failed: x\.jsonl:3: not JSON \(log: ",
        ),
        (
            "raise MemoryError('too big')",
            RunError,
            r"train failed: MemoryError: too big \(log: .*train\.log\)",
        ),
    ],
)
def test_a_failed_step_is_one_line_with_its_log(
    plan: Plan, code: str, error: type, message: str
) -> None:
    steps = (script("train", f"import sys; {code}", ranks=1), *plan.steps[1:])
    with pytest.raises(error, match=message):
        launch(replace(plan, steps=steps))
    assert not plan.run.hf.exists()
    assert [step.name for step in pending(plan.run, plan.steps)] == ["train", "export"]


def test_failed_preparation_leaves_no_run(plan: Plan) -> None:
    with pytest.raises(UserError, match="data failed: broken"):
        bad = script("data", "import sys; sys.stderr.write('error: broken\\n'); sys.exit(2)")
        launch(replace(plan, preparation=(bad,)))
    assert not plan.run.path.exists()
    assert not list(launch_folder(plan.run).glob("*.preprocess"))


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGTERM, EXIT_SAVED), (signal.SIGUSR1, EXIT_SAVED), (signal.SIGINT, 130)],
)
def test_a_stopped_launch_says_how_to_go_on(
    plan: Plan, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    steps = (script("train", SAVES, str(tmp_path / "there"), ranks=1), *plan.steps[1:])
    thread = signal_when_there(tmp_path / "there", sent)
    assert launch(replace(plan, steps=steps))[0] == code
    thread.join()
    _, said = launch(plan)
    assert said[-1].startswith("student ")
    assert plan.run.hf.joinpath("config.json").read_text().startswith("2 ")


def test_a_stop_during_export_keeps_what_is_finished(plan: Plan, tmp_path: Path) -> None:
    slow = script(
        "export",
        "import sys, time; open(sys.argv[1], 'w'); time.sleep(60)",
        str(tmp_path / "there"),
    )
    thread = signal_when_there(tmp_path / "there", signal.SIGTERM)
    code, said = launch(replace(plan, steps=(plan.steps[0], slow)))
    thread.join()
    assert code == EXIT_SAVED
    assert said[-1] == f"stopped by SIGTERM; what was finished is kept; to go on: {RESUME}"
    assert [step.name for step in pending(plan.run, plan.steps)] == ["export"]


def test_a_setting_that_is_not_built_is_refused(here: Path) -> None:
    placed = ["placement=cached", "cache.path=c", "cache.build.kind=hidden", "precision=fp8"]
    resolved = resolve_recipe("tiny", [f"teacher.{each}" for each in placed])
    with pytest.raises(UserError, match=r"teacher\.precision is fp8, which cannot be launched yet"):
        plan_local(resolved, runs=Path("runs"))


def test_adapters_are_planned(tiny: ResolvedRecipe) -> None:
    student = tiny.recipe.student.model_copy(update={"lora": Lora()})
    recipe = tiny.recipe.model_copy(update={"student": student})
    planned = plan_local(replace(tiny, recipe=recipe), runs=Path("runs"))
    assert [step.name for step in planned.steps][-2:] == ["train", "export"]
