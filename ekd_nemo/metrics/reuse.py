"""N*: what a cached method's live twin tells of the uses after which its cache has paid."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import yaml

from ekd_nemo.errors import DataError
from ekd_nemo.metrics.efficiency import reuses_to_break_even
from ekd_nemo.metrics.quantity import Quantity
from ekd_nemo.records.rundir import RunDir

EQUAL_TOKENS: Final = 0.01
_NOT_COMPUTED: Final = (  # decides nothing of what a step computes
    "name", "description", "seed", "baseline", "evaluation", "logging", "energy", "schema_version"
)  # fmt: skip
_WHERE: Final = {
    "teacher": ("placement", "split", "cache", "parallel", "offload"),
    "student": ("parallel", "recompute"),
    "train": ("micro_batch_size",),
}


@dataclass(frozen=True, slots=True)
class Twin:
    """What two runs share that differ only in where the teacher's outputs come from.

    Attributes:
        key: hash of the recipe without that.
        is_cached: whether the teacher's outputs are read.
    """

    key: str
    is_cached: bool


def twin_of(run: RunDir) -> Twin | None:
    """From the run's recipe.yaml; None where there is none, or it has no teacher.

    Raises: DataError if the file is not a recipe.
    """
    if not run.recipe_yaml.is_file():
        return None
    try:
        raw = yaml.safe_load(run.recipe_yaml.read_bytes())
    except yaml.YAMLError as error:
        raise DataError(f"{run.recipe_yaml}: {' '.join(str(error).split())}") from None
    recipe = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
    teacher = recipe.get("teacher")
    if not isinstance(teacher, dict):
        return None
    placement = cast("dict[str, Any]", teacher).get("placement", "shared")
    return Twin(_hashed(recipe), placement == "cached")


def _hashed(recipe: Mapping[str, Any]) -> str:
    body = {key: value for key, value in recipe.items() if key not in _NOT_COMPUTED}
    for section, names in _WHERE.items():
        part = body.get(section)
        if isinstance(part, dict):
            fields = cast("dict[str, Any]", part).items()
            body[section] = {key: value for key, value in fields if key not in names}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def uses_to_pay(
    cache: Quantity, live: Mapping[str, Quantity], cached: Mapping[str, Quantity]
) -> Quantity:
    """N* of a cached method against its live twin: figures `e_run` and `tokens` of both, the cache's making in J."""
    tokens = cached["tokens"].divided_by(live["tokens"], "")
    if tokens.value is None:
        return Quantity.missing("uses", tokens.reason or "")
    if abs(tokens.value - 1) > EQUAL_TOKENS:
        return Quantity.missing(
            "uses", f"cached and live runs trained on unequal tokens (ratio {tokens.value:.3g})"
        )
    return reuses_to_break_even(cache, live["e_run"], cached["e_run"])
