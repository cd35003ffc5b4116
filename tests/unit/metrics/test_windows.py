"""Energy of windows against power curves whose integral is known."""

import json
from pathlib import Path

import pytest

from ekd_nemo.metrics.windows import meters_of, window_energy
from ekd_nemo.records.rundir import RunDir

S = 1_000_000_000
HEAD = {"schema_version": 1, "node": "n", "boot_id": "b", "sampler": "s", "t_wall_ns": 0}


def record(run: RunDir, uuid: str, watts: dict[int, float], uncertainty: float | None) -> None:
    """A device's line and its average power at some seconds."""
    lines = [
        {
            "kind": "device",
            "t_mono_ns": 0,
            "uuid": uuid,
            "meter": "nvml",
            "source": "measured",
            "name": "board",
            "device_kind": "gpu",
            "role": "accelerator",
            "covers": "the board",
            "p_avg_window_ms": 1000,
            "power_limit_mw": 700_000,
            "idle_power_mw": 70_000,
            "uncertainty_pct": uncertainty,
        }
    ]
    lines += [
        {
            "kind": "power",
            "t_mono_ns": second * S,
            "uuid": uuid,
            "meter": "nvml",
            "source": "measured",
            "p_avg_mw": round(power * 1000),
        }
        for second, power in watts.items()
    ]
    run.telemetry.mkdir(parents=True, exist_ok=True)
    with run.power("n").open("a") as file:
        file.writelines(json.dumps({**HEAD, **line}) + "\n" for line in lines)


def test_a_window_holds_the_integral_over_all_devices(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, "GPU-a", dict.fromkeys(range(61), 100.0), 5.0)
    record(run, "GPU-b", {second: 10.0 * second for second in range(61)}, 3.0)
    meters = meters_of(run, "b", ["GPU-a", "GPU-b"])
    found = window_energy(meters, ["GPU-a", "GPU-b"], 10 * S, 20 * S)
    # 10 s at 100 W, and a ramp of 10 W/s from 100 W: 1000 J + 1500 J; exact up to float sums
    assert found.value == pytest.approx(2500.0, rel=1e-9)
    assert (found.source, found.coverage, found.low) == ("measured", 1.0, None)
    assert window_energy(meters, ["GPU-a"], 10 * S, 20 * S).value == pytest.approx(1000.0)
    assert meters.uncertainty_pct == 5.0


def test_a_gap_is_not_filled_in_but_bounded_and_flagged(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, "GPU-a", {s: 100.0 for s in range(61) if not 20 < s < 40}, None)
    meters = meters_of(run, "b", ["GPU-a"])
    found = window_energy(meters, ["GPU-a"], 10 * S, 50 * S)
    assert found.value == pytest.approx(2000.0)
    assert found.low == pytest.approx(2000 + 20 * 70)
    assert found.high == pytest.approx(2000 + 20 * 700)
    assert found.coverage == pytest.approx(0.5)
    assert "low_coverage" in found.flags
    assert meters.uncertainty_pct is None


def test_what_was_not_measured_is_missing_with_its_reason(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run, "GPU-a", dict.fromkeys(range(61), 100.0), None)
    meters = meters_of(run, "b", ["GPU-a"])
    beside = window_energy(meters, ["GPU-a", "GPU-b"], 10 * S, 20 * S)
    assert (beside.value, beside.reason) == (None, "no power samples of GPU-b")
    after = window_energy(meters, ["GPU-a"], 100 * S, 110 * S)
    assert (after.value, after.reason) == (None, "no power samples or counters in that time")
    assert window_energy(meters, [], 0, S).value is None
    assert meters_of(run, "another boot", ["GPU-a"]).devices == {}
