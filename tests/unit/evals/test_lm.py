"""What is run, what is reused, and where results go; the harness's part is replayed from its recorded output."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ekd_nemo.errors import RunError
from ekd_nemo.evals import lm
from ekd_nemo.evals.eval_dir import EvalDir, Stored
from ekd_nemo.evals.lm import SHARED_ROLE, Target, evaluate
from ekd_nemo.evals.model_folder import ModelFolder
from ekd_nemo.evals.request import LmSettings, Request
from ekd_nemo.evals.sidecar import Sidecar
from ekd_nemo.evals.taskset import TaskSet
from tests.unit.evals.sidecars import harness_output

TASK = "python_docs_bits_per_byte"
TASKS = TaskSet((TASK,), (), {TASK: "d1"}, local=True, include_defaults=False)
SETTINGS = LmSettings(tasks=(TASK,))


class Replay:
    """Takes the place of the worker process: every task leaves the recorded result."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails_on: str | None = None

    def __call__(
        self, argv: object, request: Path, log: Path, on_event: Callable, *, offline: Path | None
    ) -> None:
        assert offline is not None
        for job in Request.model_validate_json(request.read_bytes()).jobs:
            on_event({"event": "model", "job": job.name, "model": job.model})
            for task in job.tasks:
                if job.name == self.fails_on:
                    raise RunError(f"{task} on {job.model}: ValueError: no")
                self.ran.append(job.name)
                out = harness_output(Path(job.out) / task, "bits_per_byte.json", {TASK: 20})
                on_event({"event": "task", "job": job.name, "task": task})
                done = {"job": job.name, "task": task, "out": str(out), "device": "cpu"}
                on_event({"event": "done", **done})


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Replay:
    player = Replay()
    monkeypatch.setattr(lm, "run_harness", player)
    return player


def targets(folder: Path, run: str, student_weights: str = "s1") -> list[Target]:
    home = EvalDir(folder / run / "eval")
    student = ModelFolder(folder / run / "hf", student_weights, "tok")
    teacher = ModelFolder(folder / "teacher", "t1", "tok")
    return [
        Target("student", student, home),
        Target("teacher", teacher, EvalDir(folder / "shared"), home),
    ]


def run(folder: Path, name: str, told: list[str] | None = None, **kwargs: object) -> None:
    lines = [] if told is None else told
    evaluate(targets(folder, name), SETTINGS, TASKS, folder / "log", lines.append, **kwargs)


def test_a_teacher_is_evaluated_once_for_all_runs(tmp_path: Path, replay: Replay) -> None:
    run(tmp_path, "r1")
    assert replay.ran == ["student", "teacher"]
    run(tmp_path, "r2")
    assert replay.ran == ["student", "teacher", "student"]
    stored = {s.role: s for s in EvalDir(tmp_path / "r2" / "eval").stored()}
    shared = EvalDir(tmp_path / "shared").results(SHARED_ROLE, TASK)
    assert stored["teacher"].settings.copied_from == str(shared)
    assert stored["student"].settings.copied_from is None


def test_what_is_stored_is_not_run_again_unless_asked(tmp_path: Path, replay: Replay) -> None:
    told: list[str] = []
    run(tmp_path, "r1")
    run(tmp_path, "r1", told)
    assert len(replay.ran) == 2
    assert sum("not run again" in line for line in told) == 2
    run(tmp_path, "r1", again=True)
    assert len(replay.ran) == 4


@pytest.mark.parametrize(
    "change",
    [{"limit": 3}, {"dtype": "bfloat16"}, {"num_fewshot": 2}, {"apply_chat_template": True}],
)
def test_other_settings_are_run_anew(
    tmp_path: Path, replay: Replay, change: dict[str, object]
) -> None:
    run(tmp_path, "r1")
    other = SETTINGS.model_copy(update=change)
    evaluate(targets(tmp_path, "r1"), other, TASKS, tmp_path / "log", lambda _: None)
    assert len(replay.ran) == 4


def test_other_weights_and_other_task_data_are_run_anew(tmp_path: Path, replay: Replay) -> None:
    run(tmp_path, "r1")
    changed = targets(tmp_path, "r1", student_weights="s2")
    evaluate(changed, SETTINGS, TASKS, tmp_path / "log", lambda _: None)
    assert replay.ran == ["student", "teacher", "student"]
    other = TaskSet((TASK,), (), {TASK: "d2"}, local=True, include_defaults=False)
    evaluate(changed, SETTINGS, other, tmp_path / "log", lambda _: None)
    assert replay.ran[3:] == ["student", "teacher"]


def test_a_harness_that_fails_half_way_leaves_what_was_done(tmp_path: Path, replay: Replay) -> None:
    replay.fails_on = "teacher"
    with pytest.raises(RunError, match="ValueError: no"):
        run(tmp_path, "r1")
    home = EvalDir(tmp_path / "r1" / "eval")
    assert [s.role for s in home.stored()] == ["student"]
    assert list(home.path.glob(".lm-*")) == []
    replay.fails_on = None
    run(tmp_path, "r1")
    assert replay.ran == ["student", "teacher"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, replay: Replay) -> None:
    (tmp_path / "r1").write_text("a file where the folder would be")
    with pytest.raises(RunError, match="results cannot be stored") as caught:
        run(tmp_path, "r1")
    assert "\n" not in str(caught.value)


def test_a_lost_copy_is_made_again_without_the_harness(tmp_path: Path, replay: Replay) -> None:
    run(tmp_path, "r1")
    home = EvalDir(tmp_path / "r1" / "eval")
    home.results("teacher", TASK).unlink()
    shutil.rmtree(home.path / "samples")
    run(tmp_path, "r1")
    assert len(replay.ran) == 2
    assert {s.role for s in home.stored()} == {"student", "teacher"}


def test_two_runs_may_evaluate_the_teacher_that_they_share_at_once(
    tmp_path: Path, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tasks of a job array do: one hands its result over while the other is between its renames."""
    place = EvalDir.place

    def and_the_other_one(home: EvalDir, scratch: Path, settings: Sidecar) -> Stored:
        stored = place(home, scratch, settings)
        if home.path.name == "shared":
            other = settings.model_copy(update={"results_sha256": "0" * 64, "request_hash": "x"})
            home.settings(SHARED_ROLE, TASK).write_text(other.model_dump_json())
        return stored

    monkeypatch.setattr(EvalDir, "place", and_the_other_one)
    run(tmp_path, "r1")
    (stored,) = [s for s in EvalDir(tmp_path / "r1" / "eval").stored() if s.role == "teacher"]
    assert stored.settings.copied_from == str(
        EvalDir(tmp_path / "shared").results(SHARED_ROLE, TASK)
    )


def test_a_stored_result_that_is_replaced_meanwhile_is_one_line(
    tmp_path: Path, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, "r1")
    find, asked = EvalDir.find, list[str]()

    def once(home: EvalDir, role: str, *words: str) -> Stored | None:
        asked.extend([role] if home.path.name == "shared" else [])
        return None if asked.count(SHARED_ROLE) > 1 else find(home, role, *words)

    monkeypatch.setattr(EvalDir, "find", once)
    with pytest.raises(RunError, match="another evaluation of .* is replacing its result"):
        run(tmp_path, "r2")
