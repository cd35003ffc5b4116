"""Nodes of one attempt, their clocks far apart: one window, the same time on each clock."""

from pathlib import Path

import pytest

from ekd_nemo.errors import DataError
from ekd_nemo.metrics.energy import run_energy
from ekd_nemo.metrics.ledger import ledger_of_run
from ekd_nemo.records.clocks import ClockOffset, ClockOffsets, write_clocks
from ekd_nemo.records.identity import write_identity
from ekd_nemo.records.rundir import RunDir
from tests.unit.metrics.synthetic import Recorder, S, identity

AHEAD_S = 5000


def two_nodes(folder: Path) -> RunDir:
    """n1 trains from 10 to 60 s at 300 W; n2, its clock 5000 s ahead, joins at 20 and ends at 40 at 100 W."""
    run = RunDir(folder / "r-s1")
    write_identity(run, identity("r-s1"))
    first = Recorder()
    first.device("GPU-0")
    first.sample("GPU-0", 0, 80, lambda _: 300.0)
    first.phase(0, "student_train", 10, 60)
    first.write(run)
    second = Recorder(node="n2", boot_id="b2", sampler="s2")
    second.device("GPU-1")
    second.sample("GPU-1", AHEAD_S, AHEAD_S + 80, lambda _: 100.0)
    second.phase(1, "teacher_forward", AHEAD_S + 20, AHEAD_S + 40)
    second.write(run)
    return run


def split_and_killed(folder: Path) -> RunDir:
    """Attempt 1 from 10 s is ended after ten steps of 10 s, of which attempt 2 does the last two again.

    The student on n1 at 300 W; the teacher on n2, which marks no steps, at 100 W.
    """
    run = RunDir(folder / "r-s1")
    write_identity(run, identity("r-s1"))
    student, teacher = Recorder(), Recorder(node="n2", boot_id="b2", sampler="s2")
    student.device("GPU-0")
    student.sample("GPU-0", 0, 160, lambda _: 300.0)
    student.phase(0, "student_train", 10, 110, attempt=1)
    for step in range(1, 11):
        student.step(0, 10 + 10 * step, step, 100, attempt=1)
    student.phase(0, "student_train", 120, 150, attempt=2)
    for step in range(9, 12):
        student.step(0, 120 + 10 * (step - 8), step, 100, attempt=2)
    teacher.device("GPU-1")
    teacher.sample("GPU-1", AHEAD_S, AHEAD_S + 160, lambda _: 100.0)
    for attempt, start, end in ((1, 10, 110), (2, 120, 150)):
        begun, ended = AHEAD_S + start, AHEAD_S + end
        teacher.phase(1, "teacher_forward", begun, ended, attempt=attempt)
    student.write(run)
    teacher.write(run)
    return run


def offsets(ahead_ns: int = AHEAD_S * S, boot: str = "b2", attempt: int = 1) -> ClockOffsets:
    def one(node: str, boot_id: str, ahead: int) -> ClockOffset:
        return ClockOffset(node=node, boot_id=boot_id, ahead_ns=ahead, uncertainty_ns=9, rounds=16)

    here = one("n1", "0123456789ab", 0)
    return ClockOffsets(attempt=attempt, t_mono_ns=0, offsets=(here, one("n2", boot, ahead_ns)))


def test_a_node_that_waits_for_the_others_is_idle_and_counts(tmp_path: Path) -> None:
    run = two_nodes(tmp_path)
    apart = run_energy(ledger_of_run(run))
    assert apart.e_run.value == pytest.approx(300 * 50 + 100 * 20)
    write_clocks(run.clocks(1), offsets())
    ledger = ledger_of_run(run)
    together = run_energy(ledger)
    assert together.e_run.value == pytest.approx(300 * 50 + 100 * 50)
    assert together.phases["idle"].value == pytest.approx(100 * 30)
    assert together.phases["teacher_forward"].value == pytest.approx(100 * 20)
    assert ledger.duration_s == pytest.approx(50)
    assert together.mean_power.value == pytest.approx(400)


def test_an_evaluation_on_a_third_node_does_not_part_those_that_trained(tmp_path: Path) -> None:
    """A job of its own, on whatever node is free: it was not there when the clocks were compared."""
    run = two_nodes(tmp_path)
    write_clocks(run.clocks(1), offsets())
    together = run_energy(ledger_of_run(run)).e_run
    third = Recorder(node="n3", boot_id="b3", sampler="s3")
    third.device("GPU-7")
    third.sample("GPU-7", 0, 50, lambda _: 200.0)
    third.phase(0, "eval", 10, 40, uuids=("GPU-7",))
    third.write(run)
    found = run_energy(ledger_of_run(run))
    assert found.e_run.value == together.value == pytest.approx(300 * 50 + 100 * 50)
    assert found.evaluation.value == pytest.approx(200 * 30)


def test_a_teacher_on_nodes_of_its_own_loses_what_the_student_lost(tmp_path: Path) -> None:
    run = split_and_killed(tmp_path)
    for attempt in (1, 2):
        write_clocks(run.joint_clocks(attempt), offsets(attempt=attempt))
    found = run_energy(ledger_of_run(run))
    assert found.e_run.value == pytest.approx((300 + 100) * (100 + 30))
    assert found.lost.value == pytest.approx((300 + 100) * 20)


@pytest.mark.parametrize("measured", [offsets(boot="another"), offsets(attempt=2)])
def test_clocks_of_other_boots_or_attempts_join_nothing(
    tmp_path: Path, measured: ClockOffsets
) -> None:
    run = two_nodes(tmp_path)
    apart = ledger_of_run(run).rows
    write_clocks(run.clocks(measured.attempt), measured)
    assert ledger_of_run(run).rows == apart


def test_a_broken_record_of_clocks_is_told(tmp_path: Path) -> None:
    run = two_nodes(tmp_path)
    run.clocks(1).write_text('{"attempt": 1, "t_mono_ns": 3, "offsets": []}')
    with pytest.raises(DataError, match=r"clocks-1\.json: offsets"):
        ledger_of_run(run)
