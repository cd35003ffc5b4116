"""What lm-eval's JSON says, without its quirks: metric keys are `metric,filter`, an absent error is the text "N/A"."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeGuard, cast

from ekd_nemo.errors import DataError
from ekd_nemo.evals.request import LM_EVAL, canonical_hash

# What of a task's configuration decides its scores; paths, descriptions and metadata do not.
_DECISIVE: Final = (
    "output_type",
    "metric_list",
    "filter_list",
    "generation_kwargs",
    "repeats",
    "num_fewshot",
    "fewshot_split",
    "description",
    "test_split",
    "validation_split",
)


@dataclass(frozen=True)
class Figure:
    """One number of a task: value and its standard error (None: the harness gives none)."""

    metric: str
    filter: str
    value: float
    stderr: float | None


class HarnessResult:
    """One results file of lm-eval, or one of another harness brought into its shape."""

    harness: ClassVar[str] = LM_EVAL

    def __init__(self, path: Path) -> None:
        """Read and check it.

        Raises:
            DataError: if it is not a results file of the harness.
        """
        self.path = path
        try:
            raw = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read as a results file of {self.harness} ({error})"
            ) from error
        if not isinstance(raw, dict) or not isinstance(raw.get("results"), dict):
            raise DataError(f"{path}: not a results file of {self.harness}: no object `results`")
        self.raw = cast("dict[str, Any]", raw)

    def section(self, name: str) -> Mapping[str, Any]:
        """A top-level object; empty if absent."""
        found = self.raw.get(name)
        return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}

    def of_task(self, section: str, task: str) -> Mapping[str, Any]:
        """A task's object in a section; empty if absent."""
        found = self.section(section).get(task)
        return cast("Mapping[str, Any]", found) if isinstance(found, dict) else {}

    @property
    def version(self) -> str:
        """The harness's version."""
        return str(self.raw.get("lm_eval_version", "unknown"))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Every task and group with figures."""
        return tuple(dict.fromkeys([*self.section("results"), *self.section("groups")]))

    def is_group(self, task: str) -> bool:
        """Whether the row aggregates others."""
        return bool(self.parts(task))

    def parts(self, task: str) -> Sequence[str]:
        """The direct parts of a group; none of a task."""
        return self.section("group_subtasks").get(task) or ()

    def group_of(self, task: str) -> str | None:
        """The outermost group that the task is a part of."""
        parents = [
            name for name, parts in self.section("group_subtasks").items() if task in (parts or ())
        ]
        return (self.group_of(parents[0]) or parents[0]) if parents else None

    def figures(self, task: str) -> Iterator[Figure]:
        """The task's numbers; a NaN is left out."""
        row = self.of_task("groups", task) or self.of_task("results", task)
        for key, value in row.items():
            metric, comma, filter_name = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = row.get(f"{metric}_stderr,{filter_name}")
            yield Figure(metric, filter_name, float(value), stderr if _is_number(stderr) else None)

    def num_samples(self, task: str) -> int | None:
        """Items evaluated; of a group the sum over its parts; None if the file does not say."""
        parts = self.parts(task)
        if parts:
            counts = [self.num_samples(part) for part in parts]
            return None if None in counts else sum(count for count in counts if count is not None)
        effective = self.of_task("n-samples", task).get("effective")
        return effective if isinstance(effective, int) else None

    def settings_hash(self, task: str) -> str:
        """Equal for two models if and only if they were asked the same, in the same precision, by the same harness.

        Batch size and device are left out: they change scores by rounding only.
        """
        parts = self.parts(task)
        config, model = self.of_task("configs", task), self.section("config")
        return canonical_hash(
            {
                "harness": self.harness,
                "version": self.version,
                "task": task,
                "task_version": self.section("versions").get(task),
                "parts": [self.settings_hash(part) for part in parts],
                "items": self.section("task_hashes").get(
                    task
                ),  # documents, prompts and targets of the items run
                "num_samples": self.num_samples(task),
                "config": {key: config.get(key) for key in _DECISIVE},
                "num_fewshot": self.section("n-shot").get(task),
                "dtype": model.get("model_dtype"),
                "gen_kwargs": model.get("gen_kwargs"),
                "seeds": [
                    model.get(f"{name}_seed") for name in ("random", "numpy", "torch", "fewshot")
                ],
                "system_instruction_sha": self.raw.get("system_instruction_sha"),
                "chat_template_sha": self.raw.get("chat_template_sha"),
            }
        )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
