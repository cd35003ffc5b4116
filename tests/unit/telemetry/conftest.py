"""Simulated GPUs for sampler processes, and what the records of a run say."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from ekd_nemo.records.jsonl import ReadReport, read_lines
from ekd_nemo.records.lines import Line
from ekd_nemo.records.rundir import RunDir
from tests.unit.meter.simulated_nvml.board import Board, Machine

SIMULATED_NVML = Path(__file__).parents[1] / "meter" / "simulated_nvml"
LineT = TypeVar("LineT", bound=Line)


@dataclass
class Record:
    """The lines of one power file."""

    lines: list[Line] = field(default_factory=list)
    report: ReadReport = field(default_factory=ReadReport)

    def of(self, kind: type[LineT], uuid: str | None = None) -> list[LineT]:
        """Lines of a kind, of one device."""
        found = [line for line in self.lines if isinstance(line, kind)]
        return [x for x in found if uuid is None or getattr(x, "uuid", None) == uuid]


def read_record(run: RunDir) -> Record:
    record = Record()
    (path,) = run.power_files()
    record.lines = list(read_lines(path, record.report))
    return record


def wait_for(condition: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Poll; fail the test when it takes too long."""
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, "timed out"
        time.sleep(0.02)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


@pytest.fixture
def install_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Puts boards into the machine of all processes that the test starts.

    Their scripts begin when the test calls `begin` on what is returned.
    """

    def install(*boards: Board) -> Machine:
        machine = Machine(list(boards), None, 0, tmp_path)
        monkeypatch.setenv("SIMULATED_NVML", str(machine.save()))
        paths = [str(SIMULATED_NVML), os.environ.get("PYTHONPATH", "")]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in paths if p))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return machine

    return install


@pytest.fixture
def gpu_uuid(tmp_path: Path) -> str:
    """A UUID of this test's own: owners are known to the whole machine."""
    return f"GPU-{os.getpid()}-{abs(hash(tmp_path))}"
