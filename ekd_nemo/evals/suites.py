"""Named suites of lm-eval tasks, with the shots that published scores use.

Shots: ARC 25, HellaSwag 10, MMLU 5, GSM8K 5, TruthfulQA none (its six examples are part of the task), as in the first
Open LLM Leaderboard (https://huggingface.co/docs/leaderboards/open_llm_leaderboard/archive); BBH three with a chain of
thought, as in Suzgun et al. 2022, arXiv:2210.09261. The metric that counts is in `known_tasks`.
"""

from collections.abc import Sequence
from typing import Final

# Task -> shots; None: as the task's own file has it.
_OM_PERF: Final[dict[str, int | None]] = {
    "mmlu": 5,
    "arc_challenge": 25,
    "bbh": None,
    "hellaswag": 10,
}
SUITES: Final[dict[str, dict[str, int | None]]] = {
    "om_perf": _OM_PERF,
    "extended": {**_OM_PERF, "gsm8k": 5, "truthfulqa_mc2": None},
}


def expand(names: Sequence[str]) -> tuple[str, ...]:
    """The names with suites replaced by their tasks, each once, in order."""
    return tuple(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))


def shots_of(names: Sequence[str]) -> dict[str, int]:
    """Shots of the tasks that a named suite fixes."""
    return {
        task: shots
        for name in names
        for task, shots in SUITES.get(name, {}).items()
        if shots is not None
    }
