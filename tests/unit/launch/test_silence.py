"""A run in which nothing happens any more: noticed in time, and the right rank named."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ekd_nemo.launch.silence import (
    GONE,
    NOT_STARTED,
    SilenceWatch,
    Silent,
    describe_mark,
    has_ended,
    last_mark,
    process_state,
    silent_ranks,
    verdict,
)
from ekd_nemo.records.rundir import RunDir


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "telemetry").mkdir()
    return RunDir(tmp_path)


def mark(run: RunDir, rank: int, wall_ns: int, attempt: int = 1, **more: object) -> None:
    line = {"kind": "step", "step": 3, "attempt": attempt, "t_wall_ns": wall_ns, **more}
    with run.marks(rank).open("a") as file:
        file.write(json.dumps(line) + "\n")


def test_any_rank_that_writes_keeps_the_run_alive(run: RunDir) -> None:
    clock = Clock()
    watch = SilenceWatch(run, 2, silent_s=10, clock_s=clock)
    for _ in range(5):
        clock.now_s += 9
        mark(run, 1, 1)
        assert not watch.is_silent()
    clock.now_s += 10
    assert not watch.is_silent()
    clock.now_s += 0.1
    assert watch.is_silent()
    assert watch.silence_s() == pytest.approx(10.1)


def test_marks_of_an_earlier_attempt_are_no_sign_of_life(run: RunDir) -> None:
    clock = Clock()
    mark(run, 0, 1)
    watch = SilenceWatch(run, 1, silent_s=10, clock_s=clock)
    clock.now_s += 11
    assert watch.is_silent()


NODES = {0: "n1", 1: "n1", 2: "n2", 3: "n2"}
ALIVE = dict.fromkeys(NODES, "alive")


@pytest.mark.parametrize(
    ("states", "walls", "first"),
    [
        (ALIVE, {0: 5, 1: 5, 2: 4, 3: 5}, 2),  # the oldest last mark
        (ALIVE | {3: "stopped"}, {0: 5, 1: 5, 2: 4, 3: 5}, 3),  # a stopped process before that
        (ALIVE | {1: GONE}, {0: 5, 1: 9, 2: 4, 3: 5}, 1),
        (
            ALIVE | {1: "waiting for a disk"},
            {0: 5, 1: 5, 2: 4, 3: 5},
            2,
        ),  # as anybody does for a moment
        (ALIVE, {0: 5, 1: 5, 3: 5}, 2),  # one that has never written
        ({0: "alive", 1: "alive"}, {0: 5, 1: 5, 2: 5, 3: 4}, 3),  # its node has not answered
    ],
)
def test_the_first_to_fall_silent_is_named(
    run: RunDir, states: dict[int, str], walls: dict[int, int], first: int
) -> None:
    for rank, wall in walls.items():
        mark(run, rank, wall)
    ranks = silent_ranks(run, NODES, states, attempt=1)
    assert next(each.rank for each in ranks) == first
    line = verdict(ranks, 12.4)
    assert f"rank {first} on {NODES[first]}" in line
    assert line.startswith("hung: no rank has written a mark for 12 s")
    assert "3 other rank(s) wait" in line
    assert "\n" not in line


def test_a_rank_of_an_earlier_attempt_has_written_nothing_yet(run: RunDir) -> None:
    mark(run, 0, 9, attempt=1)
    mark(run, 1, 5, attempt=2)
    ranks = silent_ranks(run, {0: "n1", 1: "n1"}, {}, attempt=2)
    assert (ranks[0].rank, ranks[0].last, ranks[0].state) == (0, "nothing yet", "unknown")


def test_a_torn_last_line_is_passed_over(run: RunDir) -> None:
    mark(run, 0, 7)
    with run.marks(0).open("a") as file:
        file.write('{"kind": "st')
    found = last_mark(run.marks(0))
    assert found is not None
    assert found["t_wall_ns"] == 7
    assert last_mark(run.marks(1)) is None


def test_marks_in_words() -> None:
    assert describe_mark({"kind": "step", "step": 3}) == "the end of step 3"
    assert describe_mark({"kind": "phase_begin", "phase": "eval"}) == "the beginning of eval"
    assert describe_mark({"kind": "phase_end", "phase": "eval"}) == "the end of eval"


def test_states_of_processes() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            while (
                process_state(process.pid) == "waiting for a disk"
            ):  # its own file, on a busy machine
                time.sleep(0.01)
            assert process_state(process.pid) == "alive"
            os.kill(process.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            assert process_state(process.pid) == "stopped"
        finally:
            process.kill()
    assert process_state(process.pid) == GONE


def test_blame_is_total() -> None:
    silent = Silent(rank=0, node="n", state="alive", last_wall_ns=None, last="")
    assert sorted([silent, silent], key=Silent.blame) == [silent, silent]


def test_a_process_has_ended_when_it_does_nothing_any_more() -> None:
    assert [has_ended(state) for state in (GONE, "dead", NOT_STARTED)] == [True] * 3
    # A stopped one, and one in a driver, may go on.
    assert not any(has_ended(state) for state in ("alive", "stopped", "waiting for a disk"))
