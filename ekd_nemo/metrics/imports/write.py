"""A run directory from foreign samples: the same files that ekd's own sampler and ranks leave."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import ekd_nemo
from ekd_nemo.metrics.imports.foreign import (
    FACTOR,
    ForeignPower,
    Sample,
    counter_factor,
    whole_mj,
    whole_mw,
)
from ekd_nemo.records.identity import Attempt, CodeVersion, RunIdentity, write_identity
from ekd_nemo.records.jsonl import JsonlStore
from ekd_nemo.records.lines import (
    CounterLine,
    DeviceLine,
    Line,
    PhaseBegin,
    PhaseEnd,
    PowerLine,
    StateLine,
)
from ekd_nemo.records.phases import Phase
from ekd_nemo.records.rundir import RunDir

NODE: Final = "imported"
_METER: Final = "import"


def write_run(
    run: RunDir, power: ForeignPower, identity: RunIdentity, phase: Phase, source: str
) -> tuple[str, ...]:
    """Write telemetry, marks and run.json of one imported run.

    All samples belong to one attempt and, as nothing tells its phases apart, to one phase. Times are those of the
    wall clock that the samples carry.

    Args:
        run: the folder to write into.
        power: the samples.
        identity: run.json without its attempt.
        phase: what the samples count as.
        source: the file that they are from, for the record.

    Returns:
        The flags that the run's energies will carry.
    """
    factor = counter_factor(power.devices.values())
    flags = ["imported"]
    if factor == FACTOR:
        flags.append("counter_divided_by_1000")
    boot_id = hashlib.sha256(f"{run.run_id}\n{source}".encode()).hexdigest()[:12]
    times = [sample.t_wall_ns for samples in power.devices.values() for sample in samples]
    first, last = min(times), max(times)
    writer = _Writer(
        boot_id,
        first,
        factor,
        {"imported_from": source, "flags": flags, "dropped": dict(power.dropped)},
    )
    uuids = {device: f"{identity.run_id}-device-{device}" for device in sorted(power.devices)}
    with JsonlStore(run.power(NODE)) as store:
        for device, uuid in uuids.items():
            store.append(
                [
                    writer.device(
                        uuid, power.names.get(device, f"device {device}"), power.devices[device]
                    )
                ]
            )
            store.append(list(writer.samples(uuid, power.devices[device])))
    with JsonlStore(run.marks(0)) as store:
        store.append(writer.marks(list(uuids.values()), phase, last))
    attempt = Attempt(
        attempt=1, t_wall_ns=first, node=NODE, boot_id=boot_id, argv=("ekd", "metrics", "import", source),
        code=CodeVersion(version=ekd_nemo.__version__), python="", platform="", packages={}, environment={},
    )  # fmt: skip
    write_identity(run, identity.model_copy(update={"attempts": (attempt,)}))
    return tuple(flags)


class _Writer:
    """Lines with times since the first sample."""

    def __init__(
        self, boot_id: str, first_ns: int, factor: int, parameters: Mapping[str, object]
    ) -> None:
        self._common: dict[str, Any] = {"node": NODE, "boot_id": boot_id}
        self._first_ns = first_ns
        self._factor = factor
        self._parameters = parameters

    def _at(self, t_wall_ns: int) -> dict[str, Any]:
        return {**self._common, "t_mono_ns": t_wall_ns - self._first_ns, "t_wall_ns": t_wall_ns}

    def _of(self, uuid: str, t_wall_ns: int) -> dict[str, Any]:
        return {
            **self._at(t_wall_ns),
            "sampler": _METER,
            "uuid": uuid,
            "meter": _METER,
            "source": "measured",
        }

    def device(self, uuid: str, name: str, samples: list[Sample]) -> Line:
        """The device's line; `p_avg_window_ms` 1: powers are about their time, not since the sample before."""
        return DeviceLine(
            **self._of(uuid, samples[0].t_wall_ns), name=name, device_kind="gpu", role="accelerator",
            covers="what the imported log covers", p_avg_window_ms=1, parameters=self._parameters,
        )  # fmt: skip

    def samples(self, uuid: str, samples: list[Sample]) -> Iterator[Line]:
        """Power, counter and state of each sample."""
        for sample in samples:
            where = self._of(uuid, sample.t_wall_ns)
            if sample.power_w is not None:
                yield PowerLine(**where, p_avg_mw=whole_mw(sample.power_w))
            if sample.energy_mj is not None:
                yield CounterLine(
                    **where, e_mj=whole_mj(sample.energy_mj, self._factor), cause="period"
                )
            if sample.state:
                yield StateLine(**where, **cast("dict[str, Any]", sample.state))

    def marks(self, uuids: list[str], phase: Phase, last_ns: int) -> list[Line]:
        """One rank in one phase, from the first sample to the last."""
        rank: dict[str, Any] = {
            "rank": 0,
            "attempt": 1,
            "uuids": uuids,
            "parallel": {"data": 0},
            "phase": phase,
        }
        return [
            PhaseBegin(**self._at(self._first_ns), **rank),
            PhaseEnd(**self._at(last_ns), **rank),
        ]


def plain_name(text: str) -> str:
    """A name that a folder may have."""
    kept = "".join(
        sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "-" for sign in text
    )
    return kept.strip(".-") or "imported"


def identity_of(run_id: str, recipe: str, method: str, source: Path) -> RunIdentity:
    """run.json of an imported run: runs of one recipe name are repeats of each other."""
    recipe_hash = hashlib.sha256(f"imported\n{recipe}".encode()).hexdigest()[:12]
    return RunIdentity(
        run_id=run_id, recipe=recipe, recipe_hash=recipe_hash, method=method, seed=None
    )
