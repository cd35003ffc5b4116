"""Is a record whole: each way in which it can fail to be, on written lines."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ekd_nemo.errors import RunDirError
from ekd_nemo.records.clocks import ClockOffset, ClockOffsets, write_clocks
from ekd_nemo.records.jsonl import JsonlStore
from ekd_nemo.records.lines import (
    CounterLine,
    EventLine,
    Line,
    PhaseBegin,
    PhaseEnd,
    PowerLine,
    StartLine,
    StopLine,
)
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.verify import Verdict, table_rows, verify_run

S = 10**9
NODE = {"node": "n", "boot_id": "b"}


def at(t_s: float) -> dict[str, object]:
    return {**NODE, "t_mono_ns": round(t_s * S), "t_wall_ns": 0}


def power(t_s: float, watts: float = 100.0, sampler: str = "s1") -> Line:
    return PowerLine(  # type: ignore[arg-type]
        **at(t_s), sampler=sampler, uuid="U", meter="nvml", source="measured",
        p_avg_mw=round(1000 * watts),
    )  # fmt: skip


def counter(t_s: float, energy_j: float) -> Line:
    return CounterLine(  # type: ignore[arg-type]
        **at(t_s), sampler="s1", uuid="U", meter="nvml", source="measured",
        e_mj=round(1000 * energy_j), cause="period",
    )  # fmt: skip


def start(t_s: float, sampler: str = "s1") -> Line:
    return StartLine(  # type: ignore[arg-type]
        **at(t_s), sampler=sampler, pid=1, power_period_ms=100, counter_period_ms=1000,
        code_version="0", meters=["nvml"], why="",
    )  # fmt: skip


def stop(t_s: float, sampler: str = "s1") -> Line:
    cost = ("cpu_user_us", "cpu_system_us", "startup_cpu_us", "driver_wall_us", "driver_cpu_us")
    other = ("max_rss_kib", "ticks", "ticks_missed", "repeats_dropped")
    zeros = dict.fromkeys((*cost, *other), 0)
    return StopLine(**at(t_s), sampler=sampler, reason="SIGTERM", **zeros)  # type: ignore[arg-type]


def mark(kind: type, t_s: float, attempt: int = 1, uuid: str = "U") -> Line:
    return kind(
        **at(t_s), rank=0, attempt=attempt, uuids=[uuid] if uuid else [], parallel={},
        phase="student_train",
    )  # fmt: skip


def sampled(begin_s: float, end_s: float, sampler: str = "s1") -> list[Line]:
    """A whole stretch at 100 W, ten times a second."""
    ticks = range(round(begin_s * 10), round(end_s * 10) + 1)
    return [
        start(begin_s, sampler),
        *(power(tick / 10, sampler=sampler) for tick in ticks),
        stop(end_s, sampler),
    ]


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., Verdict]:
    run = RunDir(tmp_path)
    run.run_json.write_text("{}")

    def write(lines: list[Line], marks: list[Line] | None = None, tail: str = "") -> Verdict:
        with JsonlStore(run.power("n")) as store:
            store.append(lines)
            store.append_text(tail)
        if marks is not None:
            with JsonlStore(run.marks(0)) as store:
                store.append(marks)
        return verify_run(run)

    return write


MARKS = [mark(PhaseBegin, 1), mark(PhaseEnd, 89)]


def test_a_whole_record(judge: Callable[..., Verdict]) -> None:
    verdict = judge([*sampled(0, 90), counter(0, 50), counter(45, 4550), counter(90, 9050)], MARKS)
    assert verdict.problems == []
    assert verdict.notes == []
    assert verdict.is_whole
    row = table_rows(verdict)[1]
    assert list(row) == [
        "U", "n", "s1", "nvml", "measured", "901", "90.0 s", "0", "-", "+0.00 %",
    ]  # fmt: skip


def without(lines: list[Line], kind: type) -> list[Line]:
    return [line for line in lines if not isinstance(line, kind)]


def event(name: str) -> Line:
    return EventLine(**at(5), sampler="s1", event=name, uuid="U")  # type: ignore[arg-type]


WHOLE = sampled(0, 90)
HOLED = [
    line for line in WHOLE if not (isinstance(line, PowerLine) and 40 * S < line.t_mono_ns < 50 * S)
]


@pytest.mark.parametrize(
    ("lines", "marks", "says"),
    [
        (without(WHOLE, StopLine), MARKS, "sampler s1 on n has no stop line: killed, or still running"),
        (without(WHOLE, StartLine), MARKS, "sampler s1 on n has no start line"),
        (HOLED, MARKS, "1 gaps, 10.0 s of 90.0 s, the longest 10.0 s"),
        (HOLED, MARKS, "10.0 s of its 88.0 s are not sampled on U"),
        ([*WHOLE, event("device_lost")], MARKS, "device_lost U"),
        ([*WHOLE, counter(0, 0), counter(90, 8800)], MARKS, "integral and counter differ by +2.27"),
        (WHOLE, [mark(PhaseBegin, 1)], "attempt 1: a phase without end: killed, or still running"),
        (WHOLE, [mark(PhaseBegin, 1), mark(PhaseEnd, 120)], "30.0 s of its 119.0 s are not"),
        (WHOLE, [mark(PhaseBegin, 1, uuid="V"), mark(PhaseEnd, 2, uuid="V")], "V was never sampled"),
        (WHOLE, [mark(PhaseBegin, 1, uuid=""), mark(PhaseEnd, 2, uuid="")], "names no device"),
        ([start(0), counter(1, 1), stop(2)], None, "U (sampler s1): no power sample"),
    ],
)  # fmt: skip
def test_problems(
    judge: Callable[..., Verdict], lines: list[Line], marks: list[Line] | None, says: str
) -> None:
    verdict = judge(lines, marks)
    assert not verdict.is_whole
    assert any(says in problem for problem in verdict.problems), verdict.problems


def test_torn_and_hostile_lines_are_problems(judge: Callable[..., Verdict]) -> None:
    verdict = judge(WHOLE, MARKS, tail='{"schema_version":1,"ki\nnonsense\n')
    assert any("1 torn lines" in problem for problem in verdict.problems)
    assert any("1 bad lines; first: " in problem for problem in verdict.problems)


def test_what_is_only_to_be_known(judge: Callable[..., Verdict]) -> None:
    verdict = judge([*WHOLE, event("stall"), event("not_supported")], None)
    assert verdict.is_whole
    assert "no marks: energy cannot be told by phase or step" in verdict.notes
    assert any("stall U" in note for note in verdict.notes)


def test_the_clocks_of_several_nodes_are_told(
    tmp_path: Path, judge: Callable[..., Verdict]
) -> None:
    elsewhere = [replace(line, node="m", sampler="s2", uuid="V") for line in (power(1), power(2))]
    notes = judge([*WHOLE, *elsewhere], MARKS).notes
    assert "2 nodes whose clocks were not compared: each keeps a window of its own" in notes
    offsets = tuple(
        ClockOffset(node=n, boot_id="b", ahead_ns=0, uncertainty_ns=u, rounds=16)
        for n, u in (("n", 0), ("m", 42_000))
    )
    run = RunDir(tmp_path)
    write_clocks(run.clocks(1), ClockOffsets(attempt=1, t_mono_ns=0, offsets=offsets))
    assert "attempt 1: clocks of 2 nodes compared, to 42 us" in verify_run(run).notes


def test_a_killed_attempt_that_was_resumed_is_a_note(judge: Callable[..., Verdict]) -> None:
    lines = [*without(sampled(0, 30), StopLine), *sampled(40, 90, "s2")]
    marks = [mark(PhaseBegin, 1), mark(PhaseBegin, 41, 2), mark(PhaseEnd, 89, 2)]
    verdict = judge(lines, marks)
    assert [p for p in verdict.problems if "marks" in p] == []
    assert any("attempt 1: a phase without end: killed" in note for note in verdict.notes)
    assert any("sampler s1 on n has no stop line: killed; a later" in n for n in verdict.notes)
    assert verdict.is_whole


def test_nothing_sampled_and_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError):
        verify_run(RunDir(tmp_path))
    (tmp_path / "run.json").write_text("{}")
    verdict = verify_run(RunDir(tmp_path))
    assert any("nothing was sampled" in problem for problem in verdict.problems)
