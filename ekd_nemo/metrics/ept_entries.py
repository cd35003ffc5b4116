"""From measured windows to entries of `ept.json`: the sampler's energy over the worker's times and tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from ekd_nemo.evals.ept_request import EptMeasured, EptSettings, EptWindow
from ekd_nemo.metrics.quantity import Quantity, Source, weakest
from ekd_nemo.metrics.repeats import mean_of_repeats
from ekd_nemo.metrics.windows import Meters, meters_of, window_energy
from ekd_nemo.records.ept import (
    MIN_EPT_S,
    EptDevice,
    EptEngine,
    EptEntry,
    EptModel,
    EptPart,
    EptRepeat,
    EptRole,
    EptWorkload,
    ept_entry,
)
from ekd_nemo.records.identity import DeviceIdentity
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.units import NS_PER_S


def entry_of(
    run: RunDir,
    found: EptMeasured,
    *,
    role: EptRole,
    model: EptModel,
    prompts: str,
    settings: EptSettings,
    request_hash: str,
    devices: Sequence[DeviceIdentity],
) -> EptEntry:
    """One measured point with its energy.

    Args:
        run: whose telemetry was recorded meanwhile; the sampler has written past the last window.
        found: by the worker.
        role: of the model.
        model: with its hashes.
        prompts: where they come from, in words.
        settings: of the benchmark.
        request_hash: names what was asked of which model, so that it is not measured again.
        devices: of the run, for their names.
    """
    meters = meters_of(run, found.boot_id, found.uuids)
    energies = [window_energy(meters, found.uuids, w.start_ns, w.end_ns) for w in found.repeats]
    repeats = tuple(map(_repeat, found.repeats, energies))
    parts, short = _parts(found, meters)
    named = {device.uuid: device for device in devices}
    per_token = _per_token(found.repeats, energies)
    details: dict[str, Any] = {
        **found.details,
        "request_hash": request_hash,
        "seconds": settings.seconds,
        "chat_template": settings.chat_template,
        "J_per_request": _over(energies, [w.requests for w in found.repeats]),
        "EPT_total_J_per_tok_low": per_token.low,
        "EPT_total_J_per_tok_high": per_token.high,
    }
    return ept_entry(
        repeats=repeats,
        workload=_workload(found, prompts, settings),
        role=role,
        model=model,
        engine=_engine(found),
        devices=tuple(_device(uuid, named) for uuid in found.uuids),
        batch_size=found.point.batch_size,
        source=weakest(energy.source for energy in energies) or _source(found, named),
        meter=", ".join(sorted({line.meter for line in meters.lines.values()})),
        uncertainty_pct=meters.uncertainty_pct,
        settings=details,
        flags=tuple(sorted({*found.flags, *short, *per_token.flags})),
        **parts,
    )


def _workload(found: EptMeasured, prompts: str, settings: EptSettings) -> EptWorkload:
    return EptWorkload(
        prompts=prompts,
        prompts_sha256=found.prompts_sha256,
        mode=found.point.mode,
        input_tokens=found.point.input_tokens,
        new_tokens=found.point.new_tokens,
        requests=settings.requests,
        seed=settings.seed,
    )


def _engine(found: EptMeasured) -> EptEngine:
    return EptEngine(
        name=found.engine,
        version=found.engine_version,
        dtype=found.dtype,
        tensor=max(1, sum(uuid.startswith("GPU-") for uuid in found.uuids)),
    )


def _repeat(window: EptWindow, energy: Quantity) -> EptRepeat:
    return EptRepeat(
        energy_j=energy.value,
        duration_s=_seconds(window),
        input_tokens=window.input_tokens,
        output_tokens=window.output_tokens,
        requests=window.requests,
        coverage=energy.coverage,
        flags=energy.flags,
        reason=energy.reason,
    )


def _parts(found: EptMeasured, meters: Meters) -> tuple[dict[str, EptPart | None], tuple[str, ...]]:
    """Prefill and decode where each was measured for at least 5 s, and flags of those that were not."""
    parts: dict[str, EptPart | None] = {"prefill": None, "decode": None}
    flags: list[str] = []
    for name, window in (("prefill", found.prefill), ("decode", found.decode)):
        if window is None:
            continue
        energy = window_energy(meters, found.uuids, window.start_ns, window.end_ns)
        tokens = window.input_tokens if name == "prefill" else window.output_tokens
        if energy.value is None or _seconds(window) < MIN_EPT_S:
            flags.append(f"{name}_below_{MIN_EPT_S:g}_s" if energy.value else f"{name}_unmeasured")
            continue
        parts[name] = EptPart(energy_j=energy.value, duration_s=_seconds(window), tokens=tokens)
    return parts, tuple(flags)


def _per_token(windows: Sequence[EptWindow], energies: Sequence[Quantity]) -> Quantity:
    """Mean over repeats with its 95 % interval, in J/token."""
    return mean_of_repeats(
        [
            energy.divided_by(Quantity(window.input_tokens + window.output_tokens), "J/token")
            for window, energy in zip(windows, energies, strict=True)
        ],
        "J/token",
    )


def _over(energies: Sequence[Quantity], counts: Sequence[int]) -> float | None:
    """Summed energy over summed counts, of the repeats that have an energy."""
    known = [
        (energy.value, count)
        for energy, count in zip(energies, counts, strict=True)
        if energy.value is not None
    ]
    total = sum(count for _, count in known)
    return sum(value for value, _ in known) / total if total else None


def _device(uuid: str, named: Mapping[str, DeviceIdentity]) -> EptDevice:
    device = named.get(uuid)
    return EptDevice(
        uuid=uuid, name=device.name if device else "", node=device.node if device else ""
    )


def _source(found: EptMeasured, named: Mapping[str, DeviceIdentity]) -> Source:
    """Of the meter, where it gave no sample."""
    known: list[Source | None] = [named[uuid].source for uuid in found.uuids if uuid in named]
    return weakest(known) or "measured"


def _seconds(window: EptWindow) -> float:
    return (window.end_ns - window.start_ns) / NS_PER_S
