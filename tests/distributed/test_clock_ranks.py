"""Ranks that say they are on different nodes compare their clocks over the store at which they met, split runs too."""

import os
from pathlib import Path

from ekd_nemo.records.clocks import read_clocks
from ekd_nemo.records.rundir import RunDir
from tests.distributed.ranks import run_ranks


def _record(rank: int, world_size: int, folder: str) -> None:
    os.environ["SLURMD_NODENAME"] = f"n{rank}"
    os.environ["EKD_ATTEMPT"] = "2"
    from ekd_nemo.models.clocks import record_clocks

    record_clocks(RunDir(Path(folder)))


def test_nodes_find_their_clocks_apart_by_what_they_are(tmp_path: Path) -> None:
    run_ranks(_record, 2, tmp_path, str(tmp_path / "run"))
    (found,) = read_clocks(RunDir(tmp_path / "run").clock_files())
    assert found.attempt == 2
    assert [offset.node for offset in found.offsets] == ["n0", "n1"]
    # in truth they share one clock
    assert all(abs(o.ahead_ns) <= o.uncertainty_ns for o in found.offsets)


def _record_joint(rank: int, world_size: int, folder: str) -> None:
    """Rank 0 is the student's; the others are the teacher's, in a world of their own."""
    os.environ["SLURMD_NODENAME"] = f"n{rank}"
    os.environ["EKD_ATTEMPT"] = "2"
    from ekd_nemo.models.meeting import met
    from ekd_nemo.teacher.joint import Seat

    teachers = world_size - 1
    seat = Seat("teacher", rank - 1, 1, teachers) if rank else Seat("student", 0, 1, teachers)
    with met(seat, RunDir(Path(folder))):
        pass


def test_both_sides_of_a_split_run_compare_their_clocks(tmp_path: Path) -> None:
    run_ranks(_record_joint, 3, tmp_path, str(tmp_path / "run"))
    (found,) = read_clocks(RunDir(tmp_path / "run").clock_files())
    assert found.attempt == 2
    assert [offset.node for offset in found.offsets] == ["n0", "n1", "n2"]
    assert all(abs(o.ahead_ns) <= o.uncertainty_ns for o in found.offsets)
