"""Run directories with scripted power, written through the real record classes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ekd_nemo.records.identity import Attempt, CodeVersion, RunIdentity, write_identity
from ekd_nemo.records.lines import (
    CounterLine,
    DeviceLine,
    Line,
    PhaseBegin,
    PhaseEnd,
    PowerLine,
    Span,
    StepMark,
)
from ekd_nemo.records.parse import encode
from ekd_nemo.records.rundir import RunDir

S = 1_000_000_000
BOOT = "0123456789ab"
NODE = "n1"


def attempt(number: int = 1) -> Attempt:
    return Attempt(
        attempt=number,
        t_wall_ns=0,
        node=NODE,
        boot_id=BOOT,
        argv=("ekd",),
        code=CodeVersion(version="0"),
        python="3.11",
        platform="test",
        packages={},
        environment={},
    )


def identity(run_id: str = "r-s1", **changes: Any) -> RunIdentity:
    values: dict[str, Any] = {
        "run_id": run_id,
        "recipe": "r",
        "recipe_hash": "abcdef012345",
        "method": "response",
        "seed": 1,
        "attempts": (attempt(),),
    }
    return RunIdentity(**(values | changes))


@dataclass
class Recorder:
    """The lines of one sampler and of the ranks on one node."""

    node: str = NODE
    boot_id: str = BOOT
    sampler: str = "5a3b1e00"
    telemetry: list[Line] = field(default_factory=list)
    marks: dict[int, list[Line]] = field(default_factory=dict)

    def where(self, at_s: float) -> dict[str, Any]:
        """Node and times of a line."""
        at_ns = round(at_s * S)
        return {
            "node": self.node,
            "boot_id": self.boot_id,
            "t_mono_ns": at_ns,
            "t_wall_ns": 1_700_000_000 * S + at_ns,
        }

    def device(self, uuid: str, **changes: Any) -> None:
        values: dict[str, Any] = {
            "uuid": uuid,
            "meter": "nvml",
            "source": "measured",
            "name": "GPU",
            "device_kind": "gpu",
            "role": "accelerator",
            "covers": "board",
            "p_avg_window_ms": 1000,
            "power_limit_mw": 700_000,
            "idle_power_mw": 70_000,
        }
        self.telemetry.append(
            DeviceLine(**self.where(0), sampler=self.sampler, **(values | changes))
        )

    def power(self, uuid: str, at_s: float, watts: float, source: Any = "measured") -> None:
        self.telemetry.append(
            PowerLine(
                **self.where(at_s),
                sampler=self.sampler,
                uuid=uuid,
                meter="nvml",
                source=source,
                p_avg_mw=round(watts * 1000),
            )
        )

    def counter(self, uuid: str, at_s: float, joules: float, source: Any = "measured") -> None:
        self.telemetry.append(
            CounterLine(
                **self.where(at_s),
                sampler=self.sampler,
                uuid=uuid,
                meter="nvml",
                source=source,
                e_mj=round(joules * 1000),
                cause="period",
            )
        )

    def sample(
        self,
        uuid: str,
        start_s: float,
        end_s: float,
        watts: Callable[[float], float],
        period_s: float = 0.1,
        source: Any = "measured",
    ) -> None:
        """Power samples of a curve at regular ticks, both ends included."""
        count = round((end_s - start_s) / period_s)
        for tick in range(count + 1):
            at = start_s + tick * period_s
            self.power(uuid, at, watts(at), source)

    def count(
        self,
        uuid: str,
        start_s: float,
        end_s: float,
        joules: Callable[[float], float],
        source: Any = "measured",
    ) -> None:
        """Counter readings once a second, both ends included."""
        for second in range(round(end_s - start_s) + 1):
            self.counter(uuid, start_s + second, joules(start_s + second), source)

    def _mark(self, kind: Any, rank: int, at_s: float, more: Mapping[str, Any]) -> None:
        values: dict[str, Any] = {
            "rank": rank,
            "attempt": 1,
            "uuids": [f"GPU-{rank}"],
            "parallel": {"tensor": 0, "pipeline": 0, "data": 0},
        }
        self.marks.setdefault(rank, []).append(kind(**self.where(at_s), **(values | dict(more))))

    def phase(self, rank: int, name: str, start_s: float, end_s: float | None, **more: Any) -> None:
        """A phase, left open where `end_s` is None."""
        self._mark(PhaseBegin, rank, start_s, {"phase": name, **more})
        if end_s is not None:
            self._mark(PhaseEnd, rank, end_s, {"phase": name, **more})

    def step(self, rank: int, at_s: float, step: int, tokens: int, **more: Any) -> None:
        self._mark(StepMark, rank, at_s, {"step": step, "tokens": tokens, **more})

    def span(
        self, rank: int, phase: str, end_s: float, duration_s: float, step: int, **more: Any
    ) -> None:
        more = {"phase": phase, "step": step, "duration_ns": round(duration_s * S), **more}
        self._mark(Span, rank, end_s, more)

    def ordered_marks(self, rank: int) -> list[Line]:
        return sorted(self.marks[rank], key=lambda line: line.t_mono_ns)

    def write(self, run: RunDir) -> None:
        """Append everything to the run's files."""
        run.telemetry.mkdir(parents=True, exist_ok=True)
        with run.power(self.node).open("a") as file:
            file.writelines(encode(line) + "\n" for line in self.telemetry)
        for rank in self.marks:
            with run.marks(rank).open("a") as file:
                file.writelines(encode(line) + "\n" for line in self.ordered_marks(rank))


def write_log(run: RunDir, lines: Sequence[Mapping[str, Any]]) -> None:
    run.logs.mkdir(parents=True, exist_ok=True)
    with run.train_log.open("a") as file:
        file.writelines(json.dumps({"schema_version": 1, **line}) + "\n" for line in lines)


def make_run(
    folder: Path,
    run_id: str,
    *,
    watts: float = 300.0,
    seconds: int = 100,
    loss: float = 2.0,
    val_kl: float | None = 0.4,
    **identity_changes: Any,
) -> RunDir:
    """A whole run of two GPUs: prerun, training, checkpoint, then evaluation."""
    run = RunDir(folder / run_id)
    write_identity(run, identity(run_id, **identity_changes))
    recorder = Recorder()
    end = 10 + seconds
    for rank in (0, 1):
        uuid = f"GPU-{rank}"
        recorder.device(uuid)
        recorder.sample(uuid, 0, end + 30, lambda _: watts)
        recorder.count(uuid, 0, end + 30, lambda t: watts * t)
        recorder.phase(rank, "prerun", 1, 9)
        recorder.phase(rank, "student_train", 10, end)
        recorder.phase(rank, "checkpoint", end, end + 5)
        for step in range(1, 11):
            where = {"tensor": rank, "pipeline": 0, "data": 0}
            recorder.step(rank, 10 + step * seconds / 10, step, 4096, parallel=where)
    recorder.phase(0, "eval", end + 10, end + 25)
    recorder.write(run)
    steps = [
        {
            "attempt": 1,
            "step": step,
            "loss": loss + 1 / step,
            "ce": loss,
            "tokens": 4096,
            "tokens_valid": 4000,
        }
        for step in range(1, 11)
    ]
    validation = {"attempt": 1, "step": 10, "val_ce": loss + 0.1, "val_tokens": 100}
    if val_kl is not None:
        validation["val_kl_to_teacher"] = val_kl
    write_log(run, [*steps, validation])
    return run
