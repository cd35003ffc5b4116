"""`ept.json` of the earlier framework: one flat object, corrected where its own telemetry proves it wrong."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from ekd_nemo.errors import DataError
from ekd_nemo.metrics.imports.foreign import FACTOR, ForeignPower, is_factor, power_energy_j
from ekd_nemo.records.ept import (
    EptDevice,
    EptEngine,
    EptEntry,
    EptModel,
    EptRepeat,
    EptRole,
    EptWorkload,
    ept_entry,
)

_REQUIRED: Final = ("E_run_J", "T_in", "T_out")
_STATED: Final = {
    "EPT_in_J_per_tok": ("T_in",),
    "EPT_out_J_per_tok": ("T_out",),
    "EPT_total_J_per_tok": ("T_in", "T_out"),
}
_DURATIONS: Final = ("duration_s", "elapsed_s", "time_s", "total_time_s")
_REQUESTS: Final = ("num_prompts", "n_prompts", "num_requests", "requests")
_NEW_TOKENS: Final = ("max_new_tokens", "new_tokens")
_AGREES: Final = 0.01


def read_ept_benchmark(path: Path, role: EptRole, power: ForeignPower | None) -> EptEntry:
    """An entry of ours, flagged `imported`.

    Answers ended where the model ended them, so its workload is `natural`. Of several benchmarks without a name of
    their prompts nobody knows whether these were the same.

    Args:
        path: the benchmark's JSON.
        role: of the model.
        power: the telemetry of the same benchmark, where that was recorded; its integral tells whether the energy
            is 1000 times too large.

    Raises:
        DataError: if it is not one, or its figures contradict each other.
    """
    body = _body(path)
    energy_j, tokens_in, tokens_out = (_number(path, body, key) for key in _REQUIRED)
    flags = ["imported"]
    _check_stated(path, body)
    if power is not None and is_factor(energy_j, power_energy_j(power)):
        energy_j /= FACTOR
        flags.append("counter_divided_by_1000")
    duration_s = _first(body, _DURATIONS)
    if duration_s is None:
        flags.append("duration_unknown")
    requests, new_tokens = _first(body, _REQUESTS), _first(body, _NEW_TOKENS)
    repeat = EptRepeat(
        energy_j=energy_j,
        duration_s=duration_s,
        input_tokens=round(tokens_in),
        output_tokens=round(tokens_out),
        requests=round(requests or 0),
    )
    return ept_entry(
        repeats=[repeat],
        workload=EptWorkload(
            prompts=_text(body, ("prompts", "prompt_file", "dataset")) or "unknown",
            mode="natural",
            new_tokens=round(new_tokens) if new_tokens else None,
            requests=round(requests) if requests else None,
        ),
        role=role,
        model=EptModel(path=_text(body, ("model", "model_name")) or path.parent.name),
        engine=EptEngine(name="unknown"),
        devices=tuple(EptDevice(uuid=f"imported-{d}") for d in sorted(power.devices))
        if power
        else (),
        batch_size=round(_first(body, ("batch_size",)) or 1),
        source="measured",
        meter="import",
        settings={"imported_from": str(path)},
        flags=tuple(flags),
    )


def _body(path: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise DataError(f"{path}: not an object with {', '.join(_REQUIRED)}")
    return cast("dict[str, Any]", raw)


def _number(path: Path, body: Mapping[str, Any], key: str) -> float:
    """A number above 0: the earlier framework wrote 0 for what it did not get."""
    value = _first(body, (key,))
    if value is None:
        raise DataError(f"{path}: {key}: a number above 0 is needed, found {body.get(key)!r}")
    return value


def _first(body: Mapping[str, Any], keys: tuple[str, ...]) -> float | None:
    for key in keys:
        value = body.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
    return None


def _text(body: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((v for key in keys if isinstance(v := body.get(key), str) and v), None)


def _check_stated(path: Path, body: Mapping[str, Any]) -> None:
    """Refuse energies per token that do not follow from the energy and the tokens beside them."""
    for key, parts in _STATED.items():
        stated = _first(body, (key,))
        computed = _number(path, body, "E_run_J") / sum(_number(path, body, part) for part in parts)
        if stated is not None and abs(stated / computed - 1) > _AGREES:
            raise DataError(
                f"{path}: {key} is {stated:g}, but E_run_J and the tokens give {computed:g} J a token"
            )
