"""The per-item logs of lm-eval: one value per item and metric, matched between two models."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from ekd_nemo.errors import DataError, UserError
from ekd_nemo.evals.paired import Difference, compare_means, compare_ratios

Key = tuple[str, ...]  # log, item number, hashes of document, prompt and target
Slot = tuple[str, str]  # metric, filter


@dataclass
class ItemLog:
    """The items of one result: by (metric, filter) and item either a value or a pair (bits, bytes)."""

    values: dict[Slot, dict[Key, float | tuple[float, float]]] = field(
        default_factory=dict[Slot, dict[Key, float | tuple[float, float]]]
    )

    def add(self, key: Key, filter_name: str, row: dict[str, Any]) -> None:
        """Take over the metrics of one logged line that are means of a value per item, and bits per byte."""
        for metric in row["metrics"]:
            value = _value(str(metric), row.get(metric))
            if value is not None:
                self.values.setdefault((str(metric), filter_name), {})[key] = value


def read_items(logs: Iterable[Path]) -> ItemLog:
    """The items of a result; those of a group's parts together.

    Raises:
        DataError: naming file and line, if a line is not what lm-eval logs.
    """
    found = ItemLog()
    for path in logs:
        subtask = path.name.removesuffix(".jsonl").rpartition(".")[2]
        # Not by `splitlines`: lm-eval leaves U+2028 and its like in texts as they are.
        for number, line in enumerate(path.read_text().removesuffix("\n").split("\n"), start=1):
            try:
                row = cast("dict[str, Any]", json.loads(line))
                key = (
                    subtask,
                    *(
                        str(row[name])
                        for name in ("doc_id", "doc_hash", "prompt_hash", "target_hash")
                    ),
                )
                found.add(key, str(row["filter"]), row)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not an item logged by lm-eval ({error!r})"
                ) from error
    return found


def compare_items(first: ItemLog, second: ItemLog, task: str) -> dict[Slot, Difference]:
    """Compare two models in every metric that both logs hold.

    Raises:
        UserError: if the logs are not of the same items.
    """
    slots = [slot for slot in first.values if slot in second.values]
    return {slot: _compare(first.values[slot], second.values[slot], task) for slot in slots}


def _compare(
    first: dict[Key, float | tuple[float, float]],
    second: dict[Key, float | tuple[float, float]],
    task: str,
) -> Difference:
    if first.keys() != second.keys():
        common = len(first.keys() & second.keys())
        raise UserError(
            f"{task}: the two logs are not of the same items ({len(first)} and {len(second)}, {common} in common); "
            "evaluate both with the same settings"
        )
    pairs = [(first[key], second[key]) for key in first]
    if all(isinstance(a, tuple) and isinstance(b, tuple) for a, b in pairs):
        table = np.array(pairs, dtype=np.float64)  # [n, model, (bits, bytes)]
        return compare_ratios(table[:, 0, 0], table[:, 1, 0], table[:, 0, 1])
    plain = np.array(pairs, dtype=np.float64)
    return compare_means(plain[:, 0], plain[:, 1])


def _value(metric: str, raw: object) -> float | tuple[float, float] | None:
    """A value per item; (bits, bytes) for bits per byte; None for metrics that are no mean, such as perplexities."""
    if isinstance(raw, bool | int | float):
        return None if metric.endswith("perplexity") else float(raw)
    if isinstance(raw, list) and metric == "bits_per_byte":
        log_likelihood, num_bytes = cast("list[Any]", raw)
        return -float(log_likelihood) / math.log(2), float(num_bytes)
    return None
