"""How much slower measured runs were than their plan: one factor for the plan at hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, cast

from ekd_nemo.config.cluster import Cluster
from ekd_nemo.config.resolve import read_resolved
from ekd_nemo.errors import ConfigError, RunDirError
from ekd_nemo.planner.alternatives import Machine
from ekd_nemo.planner.assumptions import Assumptions
from ekd_nemo.planner.scenario import models
from ekd_nemo.records.jsonl import ReadReport, read_objects
from ekd_nemo.records.rundir import RunDir

# The first steps of an attempt compile, allocate and open communicators.
WARM_UP_STEPS: Final = 2


@dataclass(frozen=True)
class Calibration:
    """Measured over planned time of a step.

    Attributes:
        factor: geometric mean over the runs; 1 without.
        runs: run ids and the factor of each.
    """

    factor: float = 1.0
    runs: tuple[tuple[str, float], ...] = ()

    def sentence(self) -> str:
        """For a reader of the plan."""
        if not self.runs:
            return "none, no measured run was given (--calibrate RUN)"
        each = ", ".join(f"{run} x{factor:.2f}" for run, factor in self.runs)
        return f"times x{self.factor:.3f}, the mean of measured over planned: {each}"


def calibrate(runs: Sequence[Path], cluster: Cluster, a: Assumptions) -> Calibration:
    """Compare run directories with their plans on a cluster.

    Args:
        runs: run directories of this kind of cluster.
        cluster: the machine that they ran on.
        a: efficiencies of the plan.
    Raises: RunDirError, ConfigError, LayoutError: one line.
    """
    factors = [(RunDir(path).run_id, _factor(RunDir(path), cluster, a)) for path in runs]
    if not factors:
        return Calibration()
    mean = math.exp(sum(math.log(factor) for _, factor in factors) / len(factors))
    return Calibration(mean, tuple(factors))


def _factor(run: RunDir, cluster: Cluster, a: Assumptions) -> float:
    recipe = read_resolved(run.recipe_yaml)
    if recipe.data.build is None:
        raise ConfigError(
            f"{run.path}: data.build is not in its recipe; its sequence length is not known"
        )
    found = models(recipe, recipe.data.build.sequence_length, lambda key: str(run.recipe_yaml))
    ranks = _ranks(run)
    machine = Machine(cluster, ranks, a, 1.0, lambda key: str(run.recipe_yaml))
    return measured_step_s(run) / machine.estimate(recipe, found).step_s


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
