"""lighteval: its tasks, the checks of its environment, what its runner leaves; it runs in an environment of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ekd_nemo.errors import RunError, UserError
from ekd_nemo.evals import light_env
from ekd_nemo.evals.light import gather_light_tasks
from ekd_nemo.evals.light_env import open_env
from ekd_nemo.evals.taskset import Split

SPLIT = Split(1234, 0.1, "test")
TASK = "python_docs_last_word"
DATE = "2026-11-21T20-39-37.454717"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """The runner as its own environment loads it: by path."""
    path = Path(light_env.__file__).parents[1] / "harness" / "light_runner.py"
    spec = importlib.util.spec_from_file_location("light_runner", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_built_in_task_has_the_items_of_lm_eval(tmp_path: Path) -> None:
    tasks = gather_light_tasks([TASK], None, SPLIT, tmp_path)
    assert tasks.local
    assert tasks.data is not None
    assert Path(tasks.custom_tasks or "").name == "light_tasks.py"
    lines = (Path(tasks.data) / TASK / "test.jsonl").read_text().splitlines()
    assert all({"context", "word"} <= json.loads(line).keys() for line in lines)
    other = gather_light_tasks([TASK], None, Split(7, 0.1, "test"), tmp_path)
    assert (other.sha256 != tasks.sha256, other.data != tasks.data) == (True, True)


def test_a_limit_takes_the_first_items_as_lm_eval_does(tmp_path: Path) -> None:
    folders = [
        gather_light_tasks([TASK], None, SPLIT, tmp_path, limit=limit).data for limit in (None, 3)
    ]
    whole, first = [(Path(str(data)) / TASK / "test.jsonl").read_text() for data in folders]
    assert first.count("\n") == 3
    assert whole.startswith(first)


def test_packages_of_a_system_that_the_environment_sees_are_borrowed_too(tmp_path: Path) -> None:
    """NVIDIA's container: a virtual environment over the system's packages, torch and pip among the latter."""
    outer = tmp_path / "outer"
    make = [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(outer)]
    subprocess.run(make, check=True)
    code = "from ekd_nemo.evals.light_env import package_folders as f; print(*f(), sep=chr(10))"
    done = subprocess.run(
        [outer / "bin" / "python", "-c", code],
        env={"PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        capture_output=True,
        text=True,
        check=True,
    )
    first, *others = done.stdout.splitlines()
    assert Path(first).is_relative_to(outer)
    assert any(Path(each).is_relative_to(sys.base_prefix) for each in others)
    assert all(each.endswith("-packages") for each in (first, *others))


def test_a_users_file_is_named_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("TASKS_TABLE = []\n")
    first = gather_light_tasks(["mine"], file, SPLIT, tmp_path)
    assert (first.custom_tasks, first.local, first.data) == (str(file), False, None)
    file.write_text("TASKS_TABLE = [1]\n")
    assert gather_light_tasks(["mine"], file, SPLIT, tmp_path).sha256 != first.sha256


@pytest.mark.parametrize(
    ("names", "file", "told"),
    [
        (["gsm8k|5"], None, "--num-fewshot"),
        (["x"], "gone.py", r"gone\.py: no such file"),
        ([TASK], __file__, "leave --custom-tasks out"),
    ],
)
def test_what_lighteval_cannot_do_is_said(
    tmp_path: Path, names: list[str], file: str | None, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        gather_light_tasks(names, Path(file) if file else None, SPLIT, tmp_path)


def test_a_folder_that_ekd_has_not_made_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").write_text("somebody's own")
    with pytest.raises(UserError, match="not an environment made by ekd"):
        open_env(tmp_path, lambda _: None)
    assert (tmp_path / "pyvenv.cfg").is_file()


def test_an_environment_for_which_there_is_no_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="the environment of lighteval cannot be stored: .*file"):
        open_env(tmp_path / "file" / "env", lambda _: None)


def test_an_environment_is_made_once_and_again_when_it_was_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def make(path: Path, requirements: str) -> dict[str, str]:
        path.mkdir()
        (path / "made-by-ekd").touch()
        made.append(path)
        return {"lighteval": requirements.partition("lighteval==")[2].split()[0]}

    monkeypatch.setattr(light_env, "_make", make)
    folder = tmp_path / "env"
    assert open_env(folder, lambda _: None).versions == {"lighteval": "0.13.0"}
    assert open_env(folder, lambda _: None).python == folder / "bin" / "python"
    assert len(made) == 1
    (folder / "ready.json").unlink()
    open_env(folder, lambda _: None)
    assert len(made) == 2


def test_the_runner_leaves_results_and_items_where_they_are_looked_for(
    tmp_path: Path, runner: ModuleType
) -> None:
    results, details = tmp_path / "results" / "org" / "m", tmp_path / "details" / "org" / "m" / DATE
    results.mkdir(parents=True)
    details.mkdir(parents=True)
    (results / f"results_{DATE}.json").write_text("{}")
    rows = [
        {
            "doc": {"id": str(n), "query": f"q{n}", "choices": [" a"], "gold_index": 0},
            "metric": {"acc": n},
        }
        for n in range(2)
    ]
    table: Any = pa.Table.from_pylist(rows)
    pq.write_table(table, details / f"details_{TASK}|0_{DATE}.parquet")
    runner.gather(tmp_path)
    assert sorted(path.name for path in (tmp_path / "lighteval").iterdir()) == [
        f"results_{DATE}.json",
        f"samples_{TASK}_{DATE}.jsonl",
    ]
    lines = (tmp_path / "lighteval" / f"samples_{TASK}_{DATE}.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert (first["doc_id"], first["metrics"], second["acc"]) == ("0", ["acc"], 1)
    assert first["doc_hash"] != second["doc_hash"]
    assert first["target_hash"] == second["target_hash"]


def test_nothing_is_downloaded_to_be_unpickled(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.delitem(sys.modules, runner.BLOCKED, raising=False)
    runner.block_downloads()
    assert sys.modules[runner.BLOCKED].TASKS_TABLE == []
    monkeypatch.delitem(sys.modules, runner.BLOCKED)


@pytest.mark.parametrize(
    ("raised", "message", "code"),
    [
        (ValueError("Cannot find task x in the registry"), "unknown task 'x'; lighteval knows", 2),
        (RuntimeError("no\nmemory"), "x on m: RuntimeError: no memory", 1),
    ],
)
def test_what_lighteval_raises_becomes_one_line(
    tmp_path: Path,
    runner: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    message: str,
    code: int,
) -> None:
    def evaluate(*_asked: object) -> str:
        raise raised from OSError("the disk is full")

    told: list[dict[str, object]] = []

    def emit(**event: object) -> None:
        told.append(event)

    monkeypatch.setattr(runner, "evaluate", evaluate)
    job = {"name": "model", "model": "m", "out": str(tmp_path)}
    assert runner.run_task({}, job, "x", emit) == code
    assert [event["event"] for event in told] == ["task", "error"]
    assert str(told[1]["message"]).startswith(message)
    assert told[1]["exit_code"] == code
    assert "\n" not in str(told[1]["message"])
    if code == 1:
        assert str(told[1]["message"]).endswith("(OSError: the disk is full)")
