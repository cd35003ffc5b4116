"""How fast and how dear a step is: tokens and FLOP a second, MFU, energy a token, for the log."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.planner.flops import Trained, step_flops
from ekd_nemo.planner.peaks import peak_tflops
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.live import LiveRun

# Beyond, following every node's samples would cost the training process more than the figure is worth.
MOST_NODES = 8
ATTENDED = "attended"


@dataclass(frozen=True)
class StepPace:
    """Rates of one step.

    Attributes:
        tokens_per_s: non-padding tokens of the global batch a second.
        flops: of the step, teacher, heads and attention included; see `planner.flops`.
        mfu: achieved share of the peak of all ranks, teacher's ranks included; None without a
            known peak.
        energy_per_token_j: accelerators, over the last minute's steps, teacher included; None
            before two steps have ended, without a meter, or on more than `MOST_NODES` nodes.
    """

    tokens_per_s: float
    flops: float
    mfu: float | None
    energy_per_token_j: float | None


class Pace:
    """Of one run's steps, on the rank that writes the log."""

    def __init__(
        self, run: RunDir, recipe: Recipe, student: Architecture, teacher: Architecture | None
    ) -> None:
        """Note what runs in a step."""
        placed = recipe.teacher
        asked = bool(recipe.objective.families) and placed is not None
        runs = asked and placed is not None and placed.placement != "cached"
        self._student, self._teacher = student, teacher if runs else None
        self._head = recipe.objective.response is not None
        relation = recipe.objective.relation
        self._forwards = 2 if relation is not None and relation.scope == "batch" else 1
        self._trained: Trained = "full" if recipe.student.lora is None else "lora"
        self._peak = _peak_flops(recipe)
        nodes = int(os.environ.get("WORLD_SIZE", "1")) // int(
            os.environ.get("LOCAL_WORLD_SIZE", "1")
        )
        self._live = LiveRun(run) if nodes <= MOST_NODES else None

    def of(self, counts: Mapping[str, int], duration_s: float) -> StepPace:
        """The rates of a step.

        Args:
            counts: of the global batch: "tokens", "valid", and "attended", the sum over all tokens
                of the positions that each attends to.
            duration_s: of the step.
        """
        tokens = max(counts["tokens"], 1)
        flops = step_flops(
            counts["tokens"],
            counts[ATTENDED] / tokens,
            self._student,
            self._teacher,
            trained=self._trained,
            learned_share=counts["valid"] / tokens,
            student_forwards=self._forwards,
            teacher_head=self._head,
        )
        return StepPace(
            tokens_per_s=counts["tokens"] / duration_s,
            flops=flops,
            mfu=None if self._peak is None else flops / (duration_s * self._peak),
            energy_per_token_j=self._energy_per_token_j(),
        )

    def _energy_per_token_j(self) -> float | None:
        if self._live is None:
            return None
        self._live.refresh()
        rates = self._live.rates()
        return None if rates is None else rates[1]


def _peak_flops(recipe: Recipe) -> float | None:
    """Peak of all ranks together [FLOP/s]."""
    if not torch.cuda.is_available():
        return None
    peak = peak_tflops(torch.cuda.get_device_name(), recipe.student.precision)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.teacher is not None and recipe.teacher.split is not None:
        ranks += recipe.teacher.split.ranks
    return None if peak is None else peak * 1e12 * ranks
