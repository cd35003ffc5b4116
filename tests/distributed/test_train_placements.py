"""The same training wherever the teacher stands: on the student's ranks or on its own, in any layout."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.training import Pair, curve, lines, make_pair, make_run, started, train

pytestmark = pytest.mark.timeout(900)

# The bound, over 20 steps in fp32. Single steps differ by some 1e-7 where sums are in
# another order.
TOLERANCE = 1e-4
ALONE = {"placement": "split", "split": {"ranks": 1, "depth": 1, "transport": "fp32"}}
TWO = {"placement": "split", "split": {"ranks": 2, "depth": 2, "transport": "fp32"}}
# Ranks in all, and what the recipe says of the teacher and the student.
PLACEMENTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "shared-tp2-over-dp2": (2, {"parallel": {"tensor": 2}}, {}),
    "split-1-1": (2, ALONE, {}),
    "shared-pp2-over-tp2": (2, {"parallel": {"pipeline": 2}}, {"tensor": 2}),
    "shared-tp2-pp2-over-dp4": (4, {"parallel": {"tensor": 2, "pipeline": 2}}, {}),
    "split-2-tp2": (4, TWO | {"parallel": {"tensor": 2}}, {}),
    "split-2-pp2": (4, TWO | {"parallel": {"pipeline": 2}}, {"tensor": 2}),
}
QUICK = ("shared-tp2-over-dp2", "split-1-1")
LONG = {
    "train__steps": 20,
    "train__val_interval": 10,
    "train__val_samples": 4,
    "train__checkpoint_interval": 20,
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "response": {},
    "feature": {"objective": {"w_ce": 0.3, "feature": {"token_ratio": 0.5}}},
    "relation": {"objective": {"w_ce": 0.3, "relation": {"weight_angle": 1.0}}},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def one_rank(
    pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """The curves of one rank that holds both, by objective; filled when first asked for."""
    return {}


def cases() -> list[Any]:
    return [
        pytest.param(
            method,
            placement,
            marks=() if method == "response" and placement in QUICK else pytest.mark.slow,
        )
        for method in OBJECTIVES
        for placement in PLACEMENTS
    ]


@pytest.mark.parametrize(("method", "placement"), cases())
def test_the_curve_is_that_of_one_rank_that_holds_both(
    method: str,
    placement: str,
    pair: Pair,
    one_rank: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    changes = LONG | OBJECTIVES[method]
    if method not in one_rank:
        one_rank[method] = train(make_run(tmp_path / "one", pair, method, **changes))
    world, teacher, student = PLACEMENTS[placement]
    changes = changes | {f"teacher__{key}": value for key, value in teacher.items()}
    changes |= {"student__parallel": student}
    found = train(make_run(tmp_path / "run", pair, method, **changes), world)
    keys = {key for line in one_rank[method] for key in line if key == "loss" or "val_" in key}
    assert {"loss", "val_ce", "val_kl_to_teacher"} <= keys
    for key in keys:
        expected = curve(one_rank[method], key)
        assert curve(found, key) == pytest.approx(expected, rel=TOLERANCE), key
    assert len(curve(found, "loss")) == 20


@pytest.mark.parametrize(
    ("dead", "named"), [(1, "the teacher's rank 0"), (0, "the student's rank 0")]
)
def test_a_death_on_one_side_ends_the_other(
    dead: int, named: str, pair: Pair, tmp_path: Path
) -> None:
    long = {"train__steps": 2000, "train__val_interval": 2000, "train__checkpoint_interval": 2000}
    changes = {f"teacher__{key}": value for key, value in ALONE.items()}
    with started(make_run(tmp_path / "run", pair, **long, **changes), 2) as job:
        job.until(lambda: len(lines(job.run)) >= 3)
        pid = job.ranks[dead].pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        job.ranks[1 - dead].join(30)
        assert time.monotonic() - began < 5.0
        assert job.ranks[1 - dead].exitcode == 1
        said = (job.run / f"rank-{1 - dead}.log").read_text()
        assert f"error: {named} has gone without a word" in said


def test_a_stopped_student_lets_the_teacher_go_and_goes_on_later(
    pair: Pair, tmp_path: Path
) -> None:
    """SIGTERM to all ranks: the student saves, both end; the next launch goes on from there."""
    steps = {"train__steps": 12, "train__val_interval": 12, "train__checkpoint_interval": 100}
    changes = {f"teacher__{key}": value for key, value in ALONE.items()}
    whole = train(make_run(tmp_path / "whole", pair, **steps))
    run = make_run(tmp_path / "run", pair, **steps, **changes)
    with started(run, 2) as job:
        job.until(lambda: len(lines(run)) >= 3)
        for rank in range(2):
            job.signal(signal.SIGTERM, rank)
        assert job.wait() == [75, 0]
    stopped = max(curve(lines(run), "loss"))
    assert stopped < 12
    found = train(run, 2, attempt=2)
    assert curve(found, "loss") == pytest.approx(curve(whole, "loss"), rel=TOLERANCE)


def test_the_teachers_marks_are_of_its_own_phases(pair: Pair, tmp_path: Path) -> None:
    from ekd_nemo.records.jsonl import ReadReport, read_objects

    changes = {f"teacher__{key}": value for key, value in ALONE.items()}
    run = make_run(tmp_path / "run", pair, **changes)
    train(run, 2)
    marks = list(read_objects(run / "telemetry" / "marks-1.jsonl", ReadReport()))
    assert {line["phase"] for line in marks if "phase" in line} == {
        "prerun",
        "teacher_forward",
        "idle",
    }
    # six steps, and after steps 3 and 6 a validation of eight passes each
    begun = [m for m in marks if m.get("phase") == "teacher_forward" and "begin" in str(m)]
    assert len(begun) == 6 + 2 * 8
