"""The earlier framework's folders, in the shape of its published runs, and plain power logs."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.cli.app import main
from ekd_nemo.errors import DataError, RunDirError
from ekd_nemo.metrics.imports.earlier_telemetry import read_earlier
from ekd_nemo.metrics.imports.folders import import_path
from ekd_nemo.metrics.imports.power_csv import read_power_csv
from ekd_nemo.metrics.summary import summarise
from tests.cases import PATIENCE_S, cases

START = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)


def line(at_s: float, gpus: list[dict[str, Any]]) -> str:
    stamp = (START + timedelta(seconds=at_s)).isoformat()
    return json.dumps({"timestamp": stamp, "gpus": gpus, "cpu": {"utilization_percent": 10}}) + "\n"


def gpu(index: int, watts: float | None, energy: float | None) -> dict[str, Any]:
    return {
        "gpu_index": index, "gpu_name": "NVIDIA H100", "power_watts": watts, "energy_mJ": energy,
        "memory_used_MB": 1000, "memory_total_MB": 81559, "gpu_utilization_percent": 97,
        "memory_utilization_percent": 40, "temperature_C": 61, "fan_speed_percent": None,
    }  # fmt: skip


def power_at(t: float, index: int) -> float:
    return 550 + 40 * math.sin(t / 60) + 5 * index


def energy_at(t: float, index: int) -> float:
    return 550 * t + 40 * 60 * (1 - math.cos(t / 60)) + 5 * index * t


def telemetry(folder: Path, seconds: int = 900, factor: int = 1000, begun_j: float = 7e6) -> Path:
    """Four GPUs, a sample every five seconds, energy counters too large by `factor`."""
    folder.mkdir(parents=True)
    path = folder / "telemetry.jsonl"
    path.write_text("".join(
        line(t, [gpu(i, power_at(t, i), (begun_j + energy_at(t, i)) * 1000 * factor) for i in range(4)])
        for t in range(0, seconds + 1, 5)
    ))  # fmt: skip
    return path


def scores(folder: Path, **tasks: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps({"results": tasks}))


@pytest.mark.parametrize(
    ("factor", "flagged", "begun_j"),
    [
        (1000, True, 7e6),
        (1, False, 7e6),
        (1000, True, 4e9),
    ],  # the last after months without a reboot
)
def test_the_factor_of_a_thousand_is_found_in_the_records(
    tmp_path: Path, factor: int, flagged: bool, begun_j: float
) -> None:
    telemetry(tmp_path / "old" / "KD_RESPONSE" / "run_1", 900, factor, begun_j)
    (made,) = import_path(tmp_path / "old", tmp_path / "runs")
    assert ("counter_divided_by_1000" in made.flags) is flagged
    (run,) = summarise([tmp_path / "runs"]).runs
    e_run = run.figures["e_run"]
    expected = sum(energy_at(900, i) for i in range(4))
    assert e_run.value == pytest.approx(expected, rel=1e-6)
    assert 1.9e6 < expected < 2.1e6  # joules: what the old tables would have called some 2000 MJ
    assert run.figures["e_run_kwh"].value == pytest.approx(expected / 3.6e6, rel=1e-6)
    # Published runs of this shape, with the factor undone, agreed to +0.05..+0.13 %.
    assert abs(run.figures["counter_difference"].value or 1) < 2e-3
    assert ("counter_divided_by_1000" in e_run.flags) is flagged
    assert "counter_integral_differ" not in e_run.flags
    assert e_run.coverage == 1.0
    assert run.identity.method == "response"


def test_missing_and_zero_values_are_never_energy(tmp_path: Path) -> None:
    folder = tmp_path / "old" / "KD" / "run_1"
    folder.mkdir(parents=True)
    rows = [line(t, [gpu(0, 0.0 if 100 <= t < 200 else 400.0, None)]) for t in range(0, 301, 5)]
    (folder / "telemetry.jsonl").write_text("".join(rows) + '{"timestamp": "2025-06-01T12:')
    (made,) = import_path(tmp_path / "old", tmp_path / "runs")
    assert "20 power_watts missing or 0" in made.dropped
    assert "1 torn lines" in made.dropped
    (run,) = summarise([tmp_path / "runs"]).runs
    e_run = run.figures["e_run"]
    assert e_run.value == pytest.approx(400 * 195)
    assert e_run.coverage == pytest.approx(195 / 300)
    assert e_run.high is None


def test_scores_of_one_metric_make_om_perf_and_others_are_refused(tmp_path: Path) -> None:
    old = tmp_path / "old"
    telemetry(old / "KD_FEATURE" / "run_1", 100)
    scores(old / "BASE" / "TEACHER", hellaswag={"acc_norm": 0.8, "acc_norm_stderr": 0.01})
    scores(old / "KD_FEATURE" / "run_1", hellaswag={"acc_norm": 0.6, "acc": 0.5})
    import_path(old, tmp_path / "runs")
    (run,) = summarise([tmp_path / "runs"]).runs
    assert run.figures["om_perf"].value == pytest.approx(0.75)
    scores(old / "KD_FEATURE" / "run_1", hellaswag={"acc": 0.66})
    with pytest.raises(
        DataError,
        match=r"hellaswag: .*run_1/eval.json has acc,none and .*TEACHER/eval.json has acc_norm,none",
    ):
        import_path(old, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert len(import_path(old, tmp_path / "other", scores=False)) == 1


def benchmark(folder: Path, energy_j: float, **more: Any) -> None:
    body = {"E_run_J": energy_j, "T_in": 4000, "T_out": 16000, "batch_size": 8, **more}
    body |= {"EPT_in_J_per_tok": energy_j / 4000, "EPT_out_J_per_tok": energy_j / 16000}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ept.json").write_text(json.dumps({"EPT_total_J_per_tok": energy_j / 20000, **body}))


def test_benchmarks_come_along_with_the_factor_undone(tmp_path: Path) -> None:
    """The teacher's energy was taken from the counter that is 1000 times too large; its telemetry proves it."""
    old = tmp_path / "old"
    telemetry(old / "KD_RESPONSE" / "run_1", 100)
    telemetry(old / "BASE" / "TEACHER", 300)
    truth = sum(energy_at(300, i) for i in range(4))
    benchmark(old / "BASE" / "TEACHER", truth * 1000)
    benchmark(old / "KD_RESPONSE" / "run_1", 20_000.0)
    import_path(old, tmp_path / "runs")
    run = {r.run_id: r for r in summarise([tmp_path / "runs"]).runs}["KD_RESPONSE-run_1"]
    assert run.figures["ept_natural"].value == pytest.approx(1.0)
    teacher = run.teacher["ept_natural"]
    assert teacher.value == pytest.approx(truth / 20000, rel=1e-3)
    assert {"counter_divided_by_1000", "duration_unknown"} <= set(teacher.flags)
    t_star = run.figures["t_star"]
    e_charged = run.figures["e_charged"].value or 0.0
    assert t_star.value == pytest.approx(e_charged / ((teacher.value or 0) - 1))
    assert {"natural_lengths", "other_boards"} <= set(t_star.flags)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("[]", "E_run_J, T_in, T_out"),
        ("{", "JSON"),
        ('{"E_run_J": 0, "T_in": 1, "T_out": 1}', "E_run_J: a number above 0"),
        ('{"E_run_J": 5, "T_in": 1, "T_out": 1, "EPT_in_J_per_tok": 5000}', "EPT_in_J_per_tok"),
    ],
)
def test_a_benchmark_that_is_none_is_refused_before_anything_is_made(
    tmp_path: Path, body: str, words: str
) -> None:
    telemetry(tmp_path / "old" / "KD" / "run_1", 60)
    (tmp_path / "old" / "KD" / "run_1" / "ept.json").write_text(body)
    with pytest.raises(DataError, match=words):
        import_path(tmp_path / "old", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_nothing_is_overwritten_and_nothing_left_half_made(tmp_path: Path) -> None:
    old = tmp_path / "old"
    for name in ("run_1", "run_2"):
        telemetry(old / "KD" / name, 60)
    import_path(old, tmp_path / "runs")
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    with pytest.raises(RunDirError, match="exists"):
        import_path(old, tmp_path / "runs")
    assert {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["KD-run_1", "KD-run_2"]
    assert len(summarise([tmp_path / "runs"]).methods) == 1


@pytest.mark.parametrize(
    "content",
    [
        "timestamp,power_w\n" + "".join(f"{t},{300 + t}\n" for t in range(101)),
        "timestamp, index, power.draw [W]\n" + "".join(
            f"2025/06/01 12:{t // 60:02d}:{t % 60:02d}.000, 0, {300 + t:.2f} W\n" for t in range(101)
        ),
        "time_s,power_mw\n" + "".join(f"{t},{(300 + t) * 1000}\n" for t in range(101)) + "x,y\n5\n",
    ],
)  # fmt: skip
def test_power_logs_as_csv(tmp_path: Path, content: str) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(content)
    import_path(path, tmp_path / "runs")
    (run,) = summarise([tmp_path / "runs"]).runs
    assert run.figures["e_run"].value == pytest.approx(300 * 100 + 100 * 100 / 2)
    assert run.figures["e_run"].flags == ("imported",)


def test_a_quote_that_is_never_closed_costs_its_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    lines = [f"{t},300\n" for t in range(30_000)]
    path.write_text("".join(["time,power\n", *lines[:10], '"10,300\n', *lines[11:]]))
    found = read_power_csv(path)
    assert len(found.devices["0"]) == len(lines) - 1


def test_boards_that_a_csv_tells_by_their_bus_are_boards_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "smi.csv"
    rows = [
        f"{t}, 00000000:{b}:00.0, NVIDIA H100, 300.00 W\n" for t in range(101) for b in ("1B", "43")
    ]
    path.write_text("timestamp, pci.bus_id, name, power.draw [W]\n" + "".join(rows))
    import_path(path, tmp_path / "runs")
    (run,) = summarise([tmp_path / "runs"]).runs
    assert run.figures["e_run"].value == pytest.approx(2 * 300 * 100)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "found: nothing"),
        ("a,b\n1,2\n", "found: a, b$"),
        ('a,"b\n1,2\n', "found: a, b$"),
        (f'a,"{"b" * 200_000}\n1,2\n', "found: nothing$"),
        ("time,power\nx,y\n", "holds no line"),
    ],
)
def test_a_csv_without_the_columns_says_what_is_accepted(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        read_power_csv(path)


def test_the_command_and_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    telemetry(tmp_path / "old" / "KD" / "run_1", 60)
    assert main(["metrics", "import", str(tmp_path / "old"), "--runs", str(tmp_path / "runs")]) == 0
    assert "counter_divided_by_1000" in capsys.readouterr().out
    for wrong in (tmp_path / "old", tmp_path / "nowhere", tmp_path / "runs"):
        assert main(["metrics", "import", str(wrong), "--runs", str(tmp_path / "runs")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
)


@pytest.mark.timeout(PATIENCE_S)
@cases(100)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.just("2025-06-01T12:00:00Z"), st.text(max_size=30)), VALUES, VALUES, VALUES
        ),
        max_size=6,
    )
)
def test_hostile_lines_end_in_samples_or_one_error(
    tmp_path_factory, rows: list[tuple[Any, ...]]
) -> None:
    path = tmp_path_factory.mktemp("f") / "telemetry.jsonl"
    entries = [
        {"timestamp": t, "gpus": [gpu(0, p, e) | {"gpu_index": i}, p]} for t, p, e, i in rows
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "[[[\n{}\n")
    try:
        found = read_earlier(path)
    except DataError as error:
        assert "holds no power sample" in str(error)
    else:
        assert all(
            s.power_w is None or s.power_w > 0
            for samples in found.devices.values()
            for s in samples
        )
