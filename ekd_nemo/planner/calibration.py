"""How much slower, and how much fuller, measured runs were than their plan: factors for the plan at hand."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, cast

from ekd_nemo.config.cluster import Cluster
from ekd_nemo.config.resolve import read_resolved
from ekd_nemo.errors import ConfigError, RunDirError
from ekd_nemo.planner.alternatives import Machine
from ekd_nemo.planner.assumptions import Assumptions
from ekd_nemo.planner.estimate import Estimate
from ekd_nemo.planner.memory import GIB
from ekd_nemo.planner.scenario import models
from ekd_nemo.records.jsonl import ReadReport, read_objects
from ekd_nemo.records.rundir import RunDir

# The first steps of an attempt compile, allocate and open communicators.
WARM_UP_STEPS: Final = 2


@dataclass(frozen=True)
class MeasuredMemory:
    """The fullest device of a run, in GiB: as its board said while it trained, and as planned."""

    run: str
    measured_gib: float
    planned_gib: float

    @property
    def factor(self) -> float:
        """Measured over planned."""
        return self.measured_gib / self.planned_gib


@dataclass(frozen=True)
class Calibration:
    """Measured over planned, of the time of a step and of the memory of the fullest device.

    Attributes:
        factor: of time, geometric mean over the runs; 1 without.
        runs: run ids and the factor of each.
        memory_factor: of memory, geometric mean over the runs whose boards told it; 1 without.
        memory: of each of those.
    """

    factor: float = 1.0
    runs: tuple[tuple[str, float], ...] = ()
    memory_factor: float = 1.0
    memory: tuple[MeasuredMemory, ...] = ()

    def sentence(self) -> str:
        """For a reader of the plan."""
        if not self.runs:
            return "none, no measured run was given (--calibrate RUN)"
        each = ", ".join(f"{run} x{factor:.2f}" for run, factor in self.runs)
        return f"times x{self.factor:.3f}, the mean of measured over planned: {each}"

    def memory_sentence(self) -> str:
        """The same of memory; empty without a run."""
        if not self.runs:
            return ""
        if not self.memory:
            return "memory as planned, no run has a record of its boards' memory"
        each = ", ".join(
            f"{one.run} x{one.factor:.2f} ({one.measured_gib:.1f} GiB in use on the fullest board, free "
            f"blocks of the allocator among them, {one.planned_gib:.1f} planned)"
            for one in self.memory
        )
        return f"memory x{self.memory_factor:.3f}, the mean of measured over planned: {each}"


def calibrate(
    runs: Sequence[Path],
    cluster: Cluster,
    a: Assumptions,
    peak_bytes: Mapping[Path, float] | None = None,
) -> Calibration:
    """Compare run directories with their plans on a cluster.

    Args:
        runs: run directories of this kind of cluster.
        cluster: the machine that they ran on.
        a: efficiencies of the plan.
        peak_bytes: by run directory, what was in use on the fullest board; runs without such a record are absent.
    Raises: RunDirError, ConfigError, LayoutError: one line.
    """
    factors: list[tuple[str, float]] = []
    filled: list[MeasuredMemory] = []
    for path in runs:
        run = RunDir(path)
        plan = _plan(run, cluster, a)
        factors.append((run.run_id, measured_step_s(run) / plan.step_s))
        if peak_bytes and path in peak_bytes:
            planned = max(memory.total for memory in plan.memory.values()) / GIB
            filled.append(MeasuredMemory(run.run_id, peak_bytes[path] / GIB, planned))
    return Calibration(
        _mean([factor for _, factor in factors]),
        tuple(factors),
        _mean([one.factor for one in filled]),
        tuple(filled),
    )


def _mean(factors: Sequence[float]) -> float:
    """Geometric: twice as much and half as much cancel; 1 without any."""
    return math.exp(sum(map(math.log, factors)) / len(factors)) if factors else 1.0


def _plan(run: RunDir, cluster: Cluster, a: Assumptions) -> Estimate:
    """What would have been planned of a run."""
    recipe = read_resolved(run.recipe_yaml)
    if recipe.data.build is None:
        raise ConfigError(
            f"{run.path}: data.build is not in its recipe; its sequence length is not known"
        )
    found = models(recipe, recipe.data.build.sequence_length, lambda key: str(run.recipe_yaml))
    machine = Machine(cluster, _ranks(run), a, 1.0, lambda key: str(run.recipe_yaml))
    return machine.estimate(recipe, found)


def _ranks(run: RunDir) -> int:
    """Ranks of the newest attempt."""
    try:
        stored = cast("dict[str, Any]", json.loads(run.run_json.read_text(encoding="utf-8")))
        return int(stored["attempts"][-1]["world_size"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunDirError(f"{run.run_json}: no attempt with a world_size is in it") from error


def measured_step_s(run: RunDir) -> float:
    """The median duration of the steps of a run's training log, in s, without each attempt's first two.

    Raises: RunDirError if there is no further step.
    """
    seen: dict[int, int] = {}
    durations: list[float] = []
    if not run.train_log.is_file():
        raise RunDirError(f"{run.train_log}: no training log")
    for line in read_objects(run.train_log, ReadReport()):
        if "duration_s" not in line:
            continue
        attempt = int(line.get("attempt", 1))
        seen[attempt] = seen.get(attempt, 0) + 1
        if seen[attempt] > WARM_UP_STEPS:
            durations.append(float(line["duration_s"]))
    if not durations:
        raise RunDirError(f"{run.train_log}: no step after the first {WARM_UP_STEPS} is in it")
    return median(durations)
