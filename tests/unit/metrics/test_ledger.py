"""The ledger against scripts whose energies are known in closed form."""

import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ekd_nemo.metrics.energy import RunEnergy, energy_of, run_energy
from ekd_nemo.metrics.ledger import Ledger, build_ledger, ledger_of_run
from ekd_nemo.metrics.mark_lines import read_marks
from ekd_nemo.metrics.series import read_telemetry
from ekd_nemo.metrics.tokens import trained_tokens
from ekd_nemo.records.rundir import RunDir
from tests.unit.metrics.synthetic import Recorder

GPU = "GPU-0"
# Each example builds two run directories: shrinking a failure would take minutes.
NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)


def ledger(folder: Path, *recorders: Recorder) -> Ledger:
    run = RunDir(folder)
    for recorder in recorders:
        recorder.write(run)
    return ledger_of_run(run)


def energy(folder: Path, *recorders: Recorder) -> RunEnergy:
    return run_energy(ledger(folder, *recorders))


def one_gpu(watts: float = 300.0, end_s: float = 130.0, *, counter: bool = True) -> Recorder:
    """A GPU at constant power, sampled from 0."""
    recorder = Recorder()
    recorder.device(GPU)
    recorder.sample(GPU, 0, end_s, lambda _: watts)
    if counter:
        recorder.count(GPU, 0, end_s, lambda t: watts * t + 1e6)
    return recorder


def value(quantity) -> float:
    assert quantity.value is not None, quantity.reason
    return quantity.value


def test_e_run_spans_prerun_through_checkpoint_with_idle_and_without_evaluation(
    tmp_path: Path,
) -> None:
    recorder = one_gpu(300)
    for name, start, end in [
        ("prerun", 10, 20),
        ("student_train", 21, 81),
        ("checkpoint", 81, 91),
        ("eval", 100, 120),
    ]:
        recorder.phase(0, name, start, end)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(300 * 81)
    assert {name: value(q) for name, q in result.phases.items()} == {
        "prerun": pytest.approx(3000),
        "student_train": pytest.approx(18000),
        "checkpoint": pytest.approx(3000),
        "idle": pytest.approx(300),
    }
    assert value(result.evaluation) == pytest.approx(6000)
    assert value(result.duration) == pytest.approx(81)
    assert value(result.mean_power) == pytest.approx(300)
    assert result.e_run.source == "measured"
    assert result.e_run.coverage == 1.0
    assert (result.e_run.low, result.e_run.flags) == (None, ())
    assert result.host.reason == "no host meter"


def test_phases_and_idle_add_up_to_the_counter_difference(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.device(GPU)
    curve = lambda t: 300 + 100 * math.sin(t)  # noqa: E731
    total = lambda t: 300 * t - 100 * math.cos(t)  # noqa: E731
    recorder.sample(GPU, 0, 200, curve)
    recorder.count(GPU, 0, 200, lambda t: total(t) + 5000)
    recorder.phase(0, "prerun", 3.3, 7.1)
    for step in range(60):
        recorder.phase(0, "teacher_forward", 10 + 2 * step, 10.7 + 2 * step)
        recorder.phase(0, "student_train", 10.75 + 2 * step, 11.9 + 2 * step)
    recorder.phase(0, "eval", 40.2, 40.9)
    recorder.phase(0, "checkpoint", 131, 140)
    result = energy(tmp_path, recorder)
    whole = total(140) - total(3.3)
    parts = sum(value(q) for q in result.phases.values()) + value(result.evaluation)
    # The design's budget is 1 %; the counter's 1 s steps at the two edges are all that is left here.
    assert parts == pytest.approx(whole, rel=2e-3)
    assert value(result.e_run) + value(result.evaluation) == pytest.approx(parts, rel=1e-12)


def test_short_phases_are_apportioned_by_time_over_a_minute_and_flagged(tmp_path: Path) -> None:
    recorder = one_gpu(400, 200)
    for step in range(360):
        start = 10 + 0.5 * step
        recorder.phase(0, "teacher_forward", start, start + 0.375)
        recorder.phase(0, "student_train", start + 0.375, start + 0.5)
        recorder.step(0, start + 0.5, step + 1, 100)
    rows = ledger(tmp_path, recorder).rows
    assert all(row.apportioned for row in rows)
    assert {row.phase for row in rows} == {"teacher_forward", "student_train"}
    result = run_energy(ledger(tmp_path))
    assert value(result.phases["teacher_forward"]) == pytest.approx(0.75 * 400 * 180)
    assert result.phases["teacher_forward"].flags == ("apportioned",)
    assert result.e_run.flags == ()
    # 180 s of short stretches: two blocks of 90 s, each with both phases and its own steps
    assert [(r.step_first, r.step_last) for r in rows] == [
        (1, 180),
        (1, 180),
        (181, 360),
        (181, 360),
    ]
    assert all(row.end_ns - row.start_ns >= 60e9 for row in rows)


def test_a_short_phase_gets_its_share_by_time_not_what_the_sensor_says(tmp_path: Path) -> None:
    """Power alternates with the phases, faster than the sensor could tell on a real board."""
    recorder = Recorder()
    recorder.device(GPU)
    recorder.sample(GPU, 0, 80, lambda t: 600.0 if int(t * 10) % 4 < 2 else 200.0)
    for step in range(180):
        recorder.phase(0, "teacher_forward", 0.4 * step, 0.4 * step + 0.2)
        recorder.phase(0, "student_train", 0.4 * step + 0.2, 0.4 * step + 0.4)
    result = energy(tmp_path, recorder)
    assert value(result.phases["teacher_forward"]) == pytest.approx(
        value(result.phases["student_train"])
    )


def test_innermost_phase_counts(tmp_path: Path) -> None:
    recorder = one_gpu(100)
    recorder.phase(0, "student_train", 10, 110)
    recorder.phase(0, "teacher_forward", 30, 50)
    result = energy(tmp_path, recorder)
    assert value(result.phases["student_train"]) == pytest.approx(8000)
    assert value(result.phases["teacher_forward"]) == pytest.approx(2000)


def test_marked_idle_time_is_idle_inside_the_run_and_nothing_outside(tmp_path: Path) -> None:
    recorder = one_gpu(100)
    recorder.phase(0, "idle", 1, 9)
    recorder.phase(0, "student_train", 10, 50)
    recorder.phase(0, "idle", 50, 70)
    recorder.phase(0, "checkpoint", 70, 80)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(7000)
    assert value(result.phases["idle"]) == pytest.approx(2000)


def test_device_timed_spans_override_the_phase_around_them(tmp_path: Path) -> None:
    recorder = one_gpu(100)
    recorder.phase(0, "student_train", 10, 110)
    for step in range(10):
        recorder.span(0, "teacher_forward", 15 + 10 * step, 4, step + 1)
    result = energy(tmp_path, recorder)
    assert value(result.phases["teacher_forward"]) == pytest.approx(4000)
    assert value(result.phases["student_train"]) == pytest.approx(6000)


def test_ranks_that_share_a_device_share_its_time(tmp_path: Path) -> None:
    recorder = Recorder()
    uuid = "CPU-n1-package-0"
    recorder.device(
        uuid, meter="estimate", source="estimated", device_kind="cpu", p_avg_window_ms=None
    )
    recorder.sample(uuid, 0, 100, lambda _: 50.0, source="estimated")
    for rank in range(4):
        recorder.phase(rank, "prerun", 10, 20, uuids=[uuid])
        recorder.phase(rank, "student_train", 20, 90, uuids=[uuid])
    recorder.phase(0, "checkpoint", 40, 60, uuids=[uuid])
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(50 * 80)
    assert value(result.phases["prerun"]) == pytest.approx(500)
    assert value(result.phases["checkpoint"]) == pytest.approx(50 * 20 / 4)
    assert value(result.phases["student_train"]) == pytest.approx(50 * 70 - 250)
    assert result.e_run.source == "estimated"


def test_an_interval_that_two_samplers_wrote_counts_once(tmp_path: Path) -> None:
    first = one_gpu(300, 100)
    second = Recorder(sampler="bbbbbbbb", node="n1-container")
    second.device(GPU)
    second.sample(GPU, 40.05, 130, lambda _: 300.0)
    second.count(GPU, 40, 130, lambda t: 300 * t + 77)
    first.phase(0, "student_train", 10, 120)
    result = energy(tmp_path, first, second)
    assert value(result.e_run) == pytest.approx(300 * 110)
    assert result.e_run.coverage == 1.0


def test_all_attempts_count_and_the_time_between_them_does_not(tmp_path: Path) -> None:
    recorder = one_gpu(300, 300)
    recorder.phase(0, "student_train", 10, 60)
    recorder.phase(0, "student_train", 200, 250, attempt=2)
    recorder.phase(0, "checkpoint", 250, 260, attempt=2)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(300 * 110)
    assert value(result.duration) == pytest.approx(110)


def test_a_killed_attempt_ends_with_its_sampler_and_is_flagged(tmp_path: Path) -> None:
    first = one_gpu(300, 75)
    first.phase(0, "student_train", 10, None)
    first.step(0, 70, 1, 100)
    second = Recorder(sampler="bbbbbbbb")
    second.device(GPU)
    second.sample(GPU, 100, 200, lambda _: 300.0)
    second.phase(0, "student_train", 110, 190, attempt=2)
    result = energy(tmp_path, first, second)
    assert value(result.e_run) == pytest.approx(300 * (65 + 80))
    assert result.e_run.flags == ("unclosed_attempt",)


def test_a_killed_attempt_ends_where_the_next_begins_under_one_sampler(tmp_path: Path) -> None:
    recorder = one_gpu(300, 200)
    recorder.phase(0, "student_train", 10, None)
    recorder.step(0, 70, 1, 100)
    recorder.phase(0, "student_train", 90, 190, attempt=2)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(300 * 180)
    assert value(result.duration) == pytest.approx(180)


def test_a_killed_attempt_without_sampler_ends_with_its_last_mark(tmp_path: Path) -> None:
    recorder = one_gpu(300, 50)
    recorder.phase(0, "student_train", 10, None)
    recorder.step(0, 70, 1, 100)
    result = energy(tmp_path, recorder)
    assert value(result.duration) == pytest.approx(60)
    assert value(result.e_run) == pytest.approx(300 * 40)
    assert result.e_run.coverage == pytest.approx(40 / 60)
    assert (result.e_run.low, result.e_run.high) == (
        pytest.approx(12000 + 20 * 70),
        pytest.approx(12000 + 20 * 700),
    )
    assert result.e_run.flags == ("low_coverage", "unclosed_attempt")


def test_evaluation_by_another_process_does_not_prolong_a_killed_phase(tmp_path: Path) -> None:
    killed = one_gpu(300, 75)
    killed.phase(0, "student_train", 10, None)
    killed.step(0, 70, 1, 100)
    later = Recorder(sampler="bbbbbbbb")
    later.device(GPU)
    later.sample(GPU, 1000, 1100, lambda _: 300.0)
    later.phase(0, "eval", 1010, 1090)
    result = energy(tmp_path, killed, later)
    assert value(result.duration) == pytest.approx(65)
    assert value(result.e_run) == pytest.approx(300 * 65)
    assert value(result.evaluation) == pytest.approx(300 * 80)


def test_what_a_crash_undid_is_shown_as_lost(tmp_path: Path) -> None:
    """Step 1 and its checkpoint are in the weights; steps 2 and 3 and what followed ran again."""
    recorder = one_gpu(300, 300)
    recorder.phase(0, "student_train", 10, 40)
    recorder.step(0, 30, 1, 100)
    recorder.phase(0, "checkpoint", 40, 45)
    recorder.phase(0, "student_train", 50, 100)
    recorder.step(0, 70, 2, 100)
    recorder.phase(0, "checkpoint", 100, 104)  # of step 3, and torn
    recorder.step(0, 90, 3, 100)
    recorder.phase(0, "prerun", 200, 210, attempt=2)
    recorder.phase(0, "student_train", 210, 250, attempt=2)
    recorder.step(0, 225, 2, 100, attempt=2)
    recorder.step(0, 240, 3, 100, attempt=2)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(300 * (94 + 50))
    assert value(result.lost) == pytest.approx(300 * (104 - 45))
    assert result.lost.coverage == 1.0


def test_a_killed_attempt_loses_the_step_that_it_was_in(tmp_path: Path) -> None:
    recorder = one_gpu(300, 200)
    recorder.phase(0, "student_train", 10, None)
    recorder.step(0, 70, 1, 100)
    recorder.phase(0, "student_train", 90, 190, attempt=2)
    recorder.step(0, 150, 2, 100, attempt=2)
    assert value(energy(tmp_path, recorder).lost) == pytest.approx(300 * 20)


def test_an_attempt_without_a_step_in_the_weights_is_lost_whole(tmp_path: Path) -> None:
    recorder = one_gpu(300, 200)
    recorder.phase(0, "prerun", 10, 20)
    recorder.phase(0, "student_train", 20, 50)
    recorder.step(0, 45, 1, 100)
    recorder.phase(0, "eval", 60, 70)
    recorder.phase(0, "student_train", 90, 190, attempt=2)
    recorder.step(0, 150, 1, 100, attempt=2)
    assert value(energy(tmp_path, recorder).lost) == pytest.approx(300 * 40)


def test_a_start_that_crashed_is_lost_and_counts(tmp_path: Path) -> None:
    """Of three starts the first ends in `prerun`, the second is killed in its first step; both came to nothing."""
    recorder = one_gpu(300, 300)
    recorder.phase(0, "prerun", 10, 30)
    recorder.phase(0, "prerun", 100, 110, attempt=2)
    recorder.phase(0, "student_train", 110, 125, attempt=2)
    recorder.phase(0, "prerun", 200, 210, attempt=3)
    recorder.phase(0, "student_train", 210, 250, attempt=3)
    recorder.step(0, 240, 1, 100, attempt=3)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(300 * (20 + 25 + 50))
    assert value(result.lost) == pytest.approx(300 * (20 + 25))


def test_the_newest_start_is_not_lost_yet(tmp_path: Path) -> None:
    recorder = one_gpu(300, 300)
    recorder.phase(0, "student_train", 10, 60)
    recorder.step(0, 60, 1, 100)
    recorder.phase(0, "prerun", 100, 110, attempt=2)
    assert energy(tmp_path / "one", recorder).lost.value == 0
    recorder.phase(0, "prerun", 200, 210, attempt=3)
    assert value(energy(tmp_path / "two", recorder).lost) == pytest.approx(300 * 10)


ATTEMPTS = {
    "start": (("prerun", 10),),
    "first step": (("prerun", 4), ("student_train", 6)),
    "shards": (("preprocess", 10),),
    "cache": (("prerun", 4), ("teacher_cache", 6)),
    "export": (("checkpoint", 10),),
    "step": (("prerun", 4), ("student_train", 6)),
}


@settings(max_examples=20, phases=NO_SHRINK)
@given(st.lists(st.sampled_from(sorted(ATTEMPTS)), max_size=8))
def test_what_is_kept_and_what_is_lost_make_up_e_run(kinds: list[str]) -> None:
    recorder = one_gpu(300, 30 * (len(kinds) + 1))
    for number, kind in enumerate([*kinds, "step"], 1):
        at = 30 * number - 20
        for phase, length in ATTEMPTS[kind]:
            recorder.phase(0, phase, at, at + length, attempt=number)
            at += length
        if kind == "step":
            recorder.step(0, at, number, 100, attempt=number)
    with TemporaryDirectory() as folder:
        found = ledger(Path(folder), recorder)
    result = run_energy(found)
    kept = energy_of([row for row in found.rows if row.in_run and not row.lost], "")
    assert value(kept) + value(result.lost) == pytest.approx(value(result.e_run))
    crashed = sum(kind in ("start", "first step") for kind in kinds)
    assert value(result.e_run) == pytest.approx(3000 * (len(kinds) + 1))
    assert value(result.lost) == pytest.approx(3000 * crashed)


def test_nothing_is_lost_where_an_attempt_saved_all_that_it_did(tmp_path: Path) -> None:
    recorder = one_gpu(300, 300)
    recorder.phase(0, "preprocess", 5, 9)
    recorder.phase(0, "student_train", 10, 60, attempt=2)
    recorder.step(0, 55, 1, 100, attempt=2)
    recorder.phase(0, "checkpoint", 60, 65, attempt=2)
    recorder.phase(0, "student_train", 200, 250, attempt=3)
    recorder.step(0, 240, 2, 100, attempt=3)
    recorder.phase(0, "checkpoint", 260, 270, attempt=4)  # an export by hand: no step
    result = energy(tmp_path, recorder)
    assert result.lost.value == 0
    assert result.lost.coverage == 1.0


def test_attempts_on_two_boots_have_clocks_of_their_own(tmp_path: Path) -> None:
    first = one_gpu(300, 100)
    first.phase(0, "student_train", 10, 90)
    second = Recorder(boot_id="ffffffffffff", sampler="bbbbbbbb")
    second.device(GPU)
    second.sample(GPU, 0, 100, lambda _: 100.0)
    second.count(GPU, 0, 100, lambda t: 100 * t)
    second.phase(0, "student_train", 50, 90, attempt=2)
    result = energy(tmp_path, first, second)
    assert value(result.e_run) == pytest.approx(300 * 80 + 100 * 40)
    assert value(result.duration) == pytest.approx(120)
    assert "counter_reset" not in result.e_run.flags


def test_two_nodes_run_at_once(tmp_path: Path) -> None:
    recorders = []
    for number in range(2):
        recorder = Recorder(node=f"n{number}", boot_id=f"{number}" * 12)
        offset = 5000.0 * number  # monotonic clocks of two nodes have nothing in common
        recorder.device(f"GPU-{number}")
        recorder.sample(f"GPU-{number}", offset, offset + 100, lambda _: 200.0)
        recorder.phase(number, "student_train", offset + 10, offset + 90)
        recorders.append(recorder)
    result = energy(tmp_path, *recorders)
    assert value(result.e_run) == pytest.approx(2 * 200 * 80)
    assert value(result.duration) == pytest.approx(80)
    assert value(result.mean_power) == pytest.approx(400)


def test_a_gap_is_bridged_by_the_counter_and_said(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.device(GPU)
    recorder.sample(GPU, 0, 50, lambda _: 300.0)
    recorder.sample(GPU, 60, 130, lambda _: 300.0)
    recorder.count(GPU, 0, 130, lambda t: 300 * t)
    recorder.phase(0, "student_train", 10, 110)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(30000)
    assert result.e_run.coverage == pytest.approx(0.9)
    assert result.e_run.low is None
    assert result.e_run.flags == ("gaps_bridged_by_counter", "low_coverage")


def test_a_gap_without_counter_is_bounded_by_idle_and_limit(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.device(GPU)
    recorder.sample(GPU, 0, 50, lambda _: 300.0)
    recorder.sample(GPU, 60, 130, lambda _: 300.0)
    recorder.phase(0, "student_train", 10, 110)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(27000)
    assert (result.e_run.low, result.e_run.high) == (pytest.approx(27700), pytest.approx(34000))
    assert value(result.mean_power) == pytest.approx(300)


def test_a_gap_of_a_device_with_unknown_limit_has_no_upper_bound(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.device(GPU, power_limit_mw=None, idle_power_mw=None)
    recorder.sample(GPU, 0, 50, lambda _: 300.0)
    recorder.phase(0, "student_train", 10, 110)
    result = energy(tmp_path, recorder)
    assert (result.e_run.low, result.e_run.high) == (pytest.approx(12000), None)


def test_a_counter_reset_is_bridged_by_power_and_flagged(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.device(GPU)
    recorder.sample(GPU, 0, 130, lambda _: 300.0)
    recorder.count(GPU, 0, 50, lambda t: 300 * t + 9e6)
    recorder.count(GPU, 51, 130, lambda t: 300 * (t - 51))
    recorder.phase(0, "student_train", 10, 110)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(30000)
    assert result.e_run.flags == ("counter_reset",)


def test_counter_and_integral_are_reconciled(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.device(GPU)
    recorder.sample(GPU, 0, 130, lambda _: 300.0)
    recorder.count(GPU, 0, 130, lambda t: 290 * t)
    recorder.phase(0, "student_train", 10, 110)
    result = energy(tmp_path, recorder)
    assert value(result.discrepancy) == pytest.approx(300 / 290 - 1)
    assert result.e_run.flags == ("counter_integral_differ",)
    assert value(result.e_run) == pytest.approx(29000)


def test_a_counter_a_thousand_times_too_large_is_named(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.device(GPU)
    recorder.sample(GPU, 0, 130, lambda _: 300.0)
    recorder.count(GPU, 0, 130, lambda t: 300_000 * t)
    recorder.phase(0, "student_train", 10, 110)
    assert energy(tmp_path, recorder).e_run.flags == (
        "counter_factor_1000",
        "counter_integral_differ",
    )


def test_a_counter_that_stands_still_is_not_zero_energy(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.device(GPU)
    recorder.sample(GPU, 0, 130, lambda _: 300.0)
    recorder.count(GPU, 0, 130, lambda _: 0.0)
    recorder.phase(0, "student_train", 10, 110)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(30000)
    assert result.e_run.flags == ("counter_stuck",)


def test_host_devices_are_a_line_of_their_own(tmp_path: Path) -> None:
    recorder = one_gpu(300)
    recorder.device(
        "CPU-n1-package-0", meter="rapl", device_kind="cpu", role="host", p_avg_window_ms=None
    )
    recorder.sample("CPU-n1-package-0", 0, 130, lambda _: 80.0)
    recorder.phase(0, "student_train", 10, 110)
    recorder.phase(0, "eval", 115, 125)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(30000)
    assert value(result.host) == pytest.approx(8000)
    assert value(result.evaluation) == pytest.approx(3000)


def test_an_attempt_on_processors_alone_is_no_time_of_the_accelerators(tmp_path: Path) -> None:
    """Shards that a job without GPUs has built: host energy, hours before the training."""
    recorder = one_gpu(300)
    recorder.device(
        "CPU-n1-package-0", meter="rapl", device_kind="cpu", role="host", p_avg_window_ms=None
    )
    recorder.sample("CPU-n1-package-0", 0, 130, lambda _: 80.0)
    recorder.phase(0, "preprocess", 5, 25, uuids=("CPU-n1-package-0",), attempt=1)
    recorder.phase(0, "student_train", 60, 110, attempt=2)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(50 * 300)
    assert value(result.duration) == pytest.approx(50)
    assert value(result.mean_power) == pytest.approx(300)
    assert value(result.host) == pytest.approx((20 + 50) * 80)
    assert value(result.lost) == 0


def test_a_gpu_that_only_an_evaluation_held_was_not_idle_while_the_others_trained(
    tmp_path: Path,
) -> None:
    """A later job on the same node was given another board; or shards were built again before it."""
    recorder = one_gpu(300)
    recorder.phase(0, "student_train", 10, 60)
    later = Recorder(sampler="later")
    later.device("GPU-5")
    later.sample("GPU-5", 140, 200, lambda _: 200.0)
    later.phase(0, "eval", 150, 190, uuids=("GPU-5",))
    later.device("CPU-n1-package-0", meter="rapl", device_kind="cpu", role="host")
    later.sample("CPU-n1-package-0", 200, 300, lambda _: 80.0)
    later.phase(1, "preprocess", 210, 240, uuids=("CPU-n1-package-0",), attempt=2)
    later.phase(0, "eval", 250, 260, attempt=2)
    result = energy(tmp_path, recorder, later)
    assert value(result.e_run) == pytest.approx(50 * 300)
    assert (result.e_run.coverage, result.e_run.high) == (1.0, None)
    assert value(result.duration) == pytest.approx(50)
    assert value(result.mean_power) == pytest.approx(300)
    assert value(result.host) == pytest.approx(30 * 80)
    assert value(result.evaluation) == pytest.approx(40 * 200)


@pytest.mark.parametrize("samplers", [("a", "b"), ("b", "a")])
def test_processors_that_trained_are_no_host_while_shards_were_built(
    tmp_path: Path, samplers: tuple[str, str]
) -> None:
    """The job that built shards was told that it holds no GPU; on the node that trains there is none either."""
    cpu = "CPU-n1-package-0"
    first, second = (Recorder(sampler=name) for name in samplers)
    for recorder, role, begin in ((first, "host", 0), (second, "accelerator", 50)):
        recorder.device(cpu, meter="estimate", device_kind="cpu", role=role)
        recorder.sample(cpu, begin, begin + 40, lambda _: 80.0)
    first.phase(0, "preprocess", 5, 25, uuids=(cpu,))
    second.phase(0, "student_train", 55, 85, uuids=(cpu,), attempt=2)
    result = energy(tmp_path, first, second)
    assert value(result.e_run) == pytest.approx(80 * (20 + 30))
    assert value(result.duration) == pytest.approx(50)


def test_host_energy_of_the_shards_alone_is_not_that_of_the_run(tmp_path: Path) -> None:
    """A node of GPUs often lets nobody read its processors."""
    recorder = one_gpu(300)
    recorder.phase(0, "student_train", 10, 110, attempt=2)
    builder = Recorder(node="n3", boot_id="b3", sampler="s3")
    builder.device("CPU-n3-package-0", meter="estimate", device_kind="cpu", role="host")
    builder.sample("CPU-n3-package-0", 0, 60, lambda _: 80.0)
    builder.phase(1, "preprocess", 10, 35, uuids=("CPU-n3-package-0",))
    host = energy(tmp_path, recorder, builder).host
    assert value(host) == pytest.approx(25 * 80)
    assert host.coverage == pytest.approx(25 / 125)
    assert (host.low, host.high) == (pytest.approx(25 * 80), None)
    assert host.flags == ("hosts_not_metered",)


def test_a_board_that_a_later_attempt_leaves_alone_is_unattributed_there(tmp_path: Path) -> None:
    recorder = one_gpu(300, 200)
    recorder.device("GPU-1")
    recorder.sample("GPU-1", 0, 200, lambda _: 100.0)
    for rank in (0, 1):
        recorder.phase(rank, "student_train", 10, 60)
    recorder.phase(0, "student_train", 100, 150, attempt=2)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(50 * 300 + 50 * 100 + 50 * 300)
    assert value(result.unattributed) == pytest.approx(50 * 100)


def test_a_step_counts_whole_however_many_replicas_share_it(tmp_path: Path) -> None:
    """Killed when five of eight replicas had marked step 2; done again, and on, by four."""
    recorder = one_gpu(300)
    for rank in range(8):
        where = {"attempt": 1, "parallel": {"data": rank}}
        for step in (1, 2) if rank < 5 else (1,):
            recorder.step(rank, 10 * step, step, 100, **where)
    for rank in range(4):
        for step in (2, 3):
            where = {"attempt": 2, "parallel": {"data": rank}}
            recorder.step(rank, 50 + 10 * step, step, 200, **where)
    found = trained_tokens(rank.tokens for rank in ledger(tmp_path, recorder).ranks)
    assert (found.steps, found.tokens, found.lost_steps) == (3, 3 * 800, 1)


def test_an_accelerator_that_no_rank_occupies_is_shown_and_not_counted(tmp_path: Path) -> None:
    recorder = one_gpu(300)
    recorder.device("GPU-9")
    recorder.sample("GPU-9", 0, 130, lambda _: 60.0)
    recorder.phase(0, "student_train", 10, 110)
    result = energy(tmp_path, recorder)
    assert value(result.e_run) == pytest.approx(30000)
    assert value(result.unattributed) == pytest.approx(6000)


def test_a_device_that_was_never_sampled_leaves_the_sum_unbounded(tmp_path: Path) -> None:
    recorder = one_gpu(300)
    recorder.phase(0, "student_train", 10, 110)
    recorder.phase(1, "student_train", 10, 110)
    result = energy(tmp_path, recorder)
    assert result.e_run.coverage == pytest.approx(0.5)
    assert result.e_run.high is None
    assert result.e_run.flags == ("device_without_samples", "low_coverage")
    assert result.mean_power.reason == "no samples of GPU-1 in attempt 1"


def test_without_marks_or_samples_there_is_no_energy_and_a_reason(tmp_path: Path) -> None:
    recorder = one_gpu(300)
    nothing = energy(tmp_path / "marks", recorder)
    assert (nothing.e_run.value, nothing.e_run.reason) == (None, "no marks in telemetry/")
    only_marks = Recorder()
    only_marks.phase(0, "student_train", 10, 110)
    result = energy(tmp_path / "power", only_marks)
    assert (result.e_run.value, result.e_run.reason) == (
        None,
        "no power samples or counters in that time",
    )
    assert energy(tmp_path / "none").e_run.value is None


def test_instant_power_only_is_used_and_flagged(tmp_path: Path) -> None:
    recorder = one_gpu(300, counter=False)
    run = RunDir(tmp_path)
    recorder.phase(0, "student_train", 10, 110)
    recorder.write(run)
    file = run.power("n1")
    file.write_text(
        file.read_text().replace(
            '"p_avg_mw":300000,"p_inst_mw":null', '"p_avg_mw":null,"p_inst_mw":300000'
        )
    )
    result = run_energy(ledger_of_run(run))
    assert value(result.e_run) == pytest.approx(30000)
    assert result.e_run.flags == ("instant_power",)


def test_torn_and_bad_lines_are_skipped_and_flagged(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    recorder = one_gpu(300)
    recorder.phase(0, "student_train", 10, 110)
    recorder.write(run)
    with run.power("n1").open("a") as file:
        file.write('nonsense\n{"schema_version":1,"kind":"power","no')
    result = run_energy(ledger_of_run(run))
    assert value(result.e_run) == pytest.approx(30000)
    assert result.e_run.flags == ("bad_lines", "torn_lines")


def test_unbalanced_marks_are_closed_in_order_and_flagged(tmp_path: Path) -> None:
    recorder = one_gpu(300)
    recorder.phase(0, "student_train", 10, None)
    recorder.phase(0, "teacher_forward", 20, None)
    recorder._mark(type(recorder.marks[0][0]), 0, 30, {"phase": "checkpoint"})
    recorder.phase(0, "prerun", 5, 6)
    lines = recorder.ordered_marks(0)
    ends = Recorder()
    ends.phase(0, "student_train", 99, 110)
    recorder.marks[0] = [*lines, ends.marks[0][1]]
    result = energy(tmp_path, recorder)
    assert "unbalanced_marks" in result.e_run.flags
    assert value(result.duration) == pytest.approx(105)
    assert value(result.phases["checkpoint"]) == pytest.approx(300 * 80)


def test_steps_of_each_row(tmp_path: Path) -> None:
    """Stretches of a phase within ten minutes share a row, later ones have the next."""
    recorder = one_gpu(300, 730)
    recorder.phase(0, "prerun", 5, 10)
    recorder.phase(0, "student_train", 10, 30)
    recorder.phase(0, "checkpoint", 30, 40)
    recorder.phase(0, "student_train", 40, 60)
    recorder.phase(0, "student_train", 660, 700)
    for step, at in enumerate((20, 30, 50, 60, 670, 680, 690, 700), start=1):
        recorder.step(0, at, step, 100)
    rows = [row for row in ledger(tmp_path, recorder).rows if row.phase != "idle"]
    assert [(row.phase, row.step_first, row.step_last) for row in rows] == [
        ("prerun", None, None),
        ("student_train", 1, 4),
        ("checkpoint", None, None),
        ("student_train", 5, 8),
    ]


@settings(max_examples=20, deadline=None, phases=NO_SHRINK)
@given(st.randoms(use_true_random=False))
def test_the_order_and_the_files_of_the_lines_do_not_matter(
    tmp_path_factory, random: random.Random
) -> None:
    recorder = Recorder()
    for rank in (0, 1):
        uuid = f"GPU-{rank}"
        recorder.device(uuid)
        recorder.sample(uuid, 0, 40, lambda t: 200 + t, period_s=0.5)
        recorder.count(uuid, 0, 40, lambda t: 200 * t + t * t / 2)
        recorder.phase(rank, "prerun", 1, 5)
        for step in range(10):
            recorder.phase(rank, "teacher_forward", 5 + 3 * step, 5.5 + 3 * step)
            recorder.phase(rank, "student_train", 6 + 3 * step, 7.7 + 3 * step)
            recorder.step(rank, 7.8 + 3 * step, step + 1, 10)
    folder = tmp_path_factory.mktemp("runs")
    expected = ledger(folder / "plain", recorder)
    run = RunDir(folder / "mixed")
    recorder.write(run)
    for path in [*run.power_files(), *run.marks_files()]:
        lines = path.read_text().splitlines(keepends=True)
        lines += random.choices(lines, k=20)
        random.shuffle(lines)
        cut = random.randrange(len(lines))
        path.write_text("".join(lines[:cut]))
        path.with_name(f"{path.stem}-more.jsonl").write_text("".join(lines[cut:]))
    mixed = read_telemetry(run.power_files())
    got = build_ledger(mixed, read_marks(run.marks_files(), mixed.report))
    assert got.rows == expected.rows
    tokens = [trained_tokens(rank.tokens for rank in led.ranks) for led in (got, expected)]
    assert tokens[0] == tokens[1]
