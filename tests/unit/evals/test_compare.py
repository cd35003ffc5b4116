"""`ekd eval compare` over stored results."""

import json
from pathlib import Path

import pytest

from ekd_nemo.errors import DataError, UserError
from ekd_nemo.evals.compare import compare_rows, compare_sides, find_side
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.items import read_items
from ekd_nemo.records.rundir import RunDir
from tests.unit.evals.sidecars import DATED, harness_output, sidecar

TASK = "python_docs_bits_per_byte"
GROUP = "arithmetic_choice"


def item(number: int, **values: object) -> str:
    hashes = {f"{name}_hash": f"{name}{number}" for name in ("doc", "prompt", "target")}
    return (
        json.dumps(
            {"doc_id": number, **hashes, "filter": "none", "metrics": list(values), **values}
        )
        + "\n"
    )


def place(run: Path, role: str, golden: str, task: str, logs: dict[str, list[str]]) -> None:
    out = harness_output(run.parent / f"{role}.{task}", golden, {})
    for subtask, lines in logs.items():
        (out / "models__m" / f"samples_{subtask}_{DATED}.jsonl").write_text("".join(lines))
    EvalDir(RunDir(run).eval).place(out, sidecar(task, role))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose student needs 10 more bits a passage and gets 3 of 12 sums wrong, the teacher none."""
    folder = tmp_path / "r1"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    for role, bits in (("student", 110.0), ("teacher", 100.0)):
        nats = bits * 0.6931471805599453
        place(
            folder,
            role,
            "bits_per_byte.json",
            TASK,
            {TASK: [item(n, bits_per_byte=[-nats, 50]) for n in range(20)]},
        )
        wrong = {0, 1, 2} if role == "student" else set()
        logs = {
            part: [item(n, acc=float(n not in wrong)) for n in range(6)]
            for part in ("addition_choice",)
        }
        logs["product_choice"] = [item(n, acc=1.0) for n in range(6)]
        place(folder, role, "group.json", GROUP, logs)
    return folder


def test_student_against_teacher(run: Path) -> None:
    rows = compare_sides(find_side(str(run)), find_side(str(run), "teacher"))
    (group, bits) = rows
    assert (group.task, group.metric, group.difference.num_items) == (GROUP, "acc", 12)
    assert (group.difference.only_first, group.difference.only_second) == (0, 3)
    assert (group.difference.p_value, group.verdict) == (0.25, "no difference shown")
    assert (bits.difference.first, bits.difference.second) == (
        pytest.approx(2.2),
        pytest.approx(2.0),
    )
    assert bits.verdict == "second better"  # fewer bits are better
    assert compare_rows(rows)[2][5:7] == ["+0.2000", "+0.2000 .. +0.2000"]
    assert all(row.same_settings for row in rows)


def test_sides_are_runs_roles_and_folders(run: Path) -> None:
    assert find_side(f"{run}:teacher") == find_side(str(run), "teacher")
    assert find_side(str(run / "eval")).role == "student"
    with pytest.raises(UserError, match="no such folder"):
        find_side(str(run / "gone"))
    with pytest.raises(UserError, match="no results of a base; evaluated here: student, teacher"):
        compare_sides(find_side(f"{run}:base"), find_side(str(run)))


def test_other_items_are_refused(run: Path) -> None:
    (log,) = EvalDir(run / "eval").samples("teacher", TASK)
    log.write_text("".join(item(n, bits_per_byte=[-1.0, 50]) for n in range(5, 25)))
    with pytest.raises(UserError, match=r"not of the same items \(20 and 20, 15 in common\)"):
        compare_sides(find_side(str(run)), find_side(str(run), "teacher"))


def test_a_broken_log_is_named(run: Path) -> None:
    (log,) = EvalDir(run / "eval").samples("teacher", TASK)
    log.write_text(item(0, bits_per_byte=[-1.0, 50]) + "{\n")
    with pytest.raises(DataError, match=r"\.jsonl:2: not an item"):
        compare_sides(find_side(str(run)), find_side(str(run), "teacher"))


def test_a_text_may_hold_any_line_separator(tmp_path: Path) -> None:
    log = tmp_path / "lm.model.t.t.jsonl"
    log.write_text(item(0, acc=1.0).replace("doc0", "a\u2028b\x85c") + item(1, acc=0.0))
    assert len(read_items([log]).values["acc", "none"]) == 2
