"""What is known of well-known tasks: the metric that counts, and what guessing gets.

A task file can say the same of itself: `metadata: {primary_metric: acc, chance: {acc: 0.25}}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast


@dataclass(frozen=True)
class TaskFacts:
    """The metric that counts in OM_perf, with its filter (None: any), and its chance level (None: not one number)."""

    metric: str
    filter: str | None = None
    chance: float | None = None


# By the longest prefix of the task's name. Metrics as in the Open LLM Leaderboard's first edition; BBH by exact match.
_FACTS = {
    "mmlu": TaskFacts("acc", chance=0.25),
    "arc_challenge": TaskFacts("acc_norm", chance=0.25),
    "arc_easy": TaskFacts("acc_norm", chance=0.25),
    "hellaswag": TaskFacts("acc_norm", chance=0.25),
    "winogrande": TaskFacts("acc", chance=0.5),
    "piqa": TaskFacts("acc_norm", chance=0.5),
    "bbh": TaskFacts("exact_match"),
    "gsm8k": TaskFacts("exact_match", "strict-match", 0.0),
    "truthfulqa_mc1": TaskFacts("acc"),
    "truthfulqa_mc2": TaskFacts("acc"),
    "lambada": TaskFacts("acc", chance=0.0),
}
_PREFERRED = (
    "exact_match",
    "acc",
    "acc_norm",
    "f1",
)  # of a task that nothing is known of


def facts_of(task: str, metadata: Mapping[str, Any]) -> TaskFacts | None:
    """What the task's own metadata says, else what is known of its name, else None."""
    if isinstance(metadata.get("primary_metric"), str):
        metric = str(metadata["primary_metric"])
        return TaskFacts(metric, chance=chance_of(metric, metadata))
    prefixes = [
        name for name in _FACTS if task == name or task.startswith((f"{name}_", f"{name}:"))
    ]
    return _FACTS[max(prefixes, key=len)] if prefixes else None


def chance_of(metric: str, metadata: Mapping[str, Any]) -> float | None:
    """The chance level of a metric that a task file states."""
    chance = metadata.get("chance")
    if not isinstance(chance, Mapping):
        return None
    value = cast("Mapping[str, Any]", chance).get(metric)
    return float(value) if isinstance(value, int | float) else None


def primary_of(
    facts: TaskFacts | None,
    found: Sequence[tuple[str, str]],
    higher: Mapping[str, bool | None],
) -> tuple[str, str] | None:
    """The (metric, filter) that counts, of those found; never one where lower is better."""
    names = (facts.metric,) if facts else _PREFERRED
    for name in names:
        for metric, filter_name in found:
            fits = facts is None or facts.filter in (None, filter_name)
            if metric == name and fits and higher.get(metric) is not False:
                return metric, filter_name
    return None
