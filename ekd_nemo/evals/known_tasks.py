"""What is known of well-known tasks: the metric that counts, and what guessing gets.

A task file can say the same of itself: `metadata: {primary_metric: acc, chance: {acc: 0.25}}`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
# One over the number of options, mean over the items; 0 for free answers. Counted in the data of
# github.com/suzgunmirac/BIG-Bench-Hard at 9ee07bd; where the options are no list (true or false, yes or no): one half.
_BBH_CHANCE = {
    "boolean_expressions": 0.5,
    "causal_judgement": 0.5,
    "date_understanding": 0.1717,
    "disambiguation_qa": 0.3323,
    "dyck_languages": 0.0,
    "formal_fallacies": 0.5,
    "geometric_shapes": 0.0982,
    "hyperbaton": 0.5,
    "logical_deduction_five_objects": 0.2,
    "logical_deduction_seven_objects": 1 / 7,
    "logical_deduction_three_objects": 1 / 3,
    "movie_recommendation": 0.2462,
    "multistep_arithmetic_two": 0.0,
    "navigate": 0.5,
    "object_counting": 0.0,
    "penguins_in_a_table": 0.2003,
    "reasoning_about_colored_objects": 0.1211,
    "ruin_names": 0.2493,
    "salient_translation_error_detection": 1 / 6,
    "snarks": 0.5,
    "sports_understanding": 0.5,
    "temporal_sequences": 0.25,
    "tracking_shuffled_objects_five_objects": 0.2,
    "tracking_shuffled_objects_seven_objects": 1 / 7,
    "tracking_shuffled_objects_three_objects": 1 / 3,
    "web_of_lies": 0.5,
    "word_sorting": 0.0,
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
    if not prefixes:
        return None
    found = _FACTS[max(prefixes, key=len)]
    part = next((name for name in _BBH_CHANCE if task.endswith(name)), None)
    if found is _FACTS["bbh"] and part is not None:
        return replace(found, chance=_BBH_CHANCE[part])
    return found


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
