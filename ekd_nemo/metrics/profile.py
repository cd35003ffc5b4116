"""Power of one run over its own time, on an even grid: what the pictures of a report are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from ekd_nemo.metrics.curve import Floats, Ints
from ekd_nemo.metrics.devices import Device, device_keys, device_of
from ekd_nemo.metrics.ledger import Ledger
from ekd_nemo.metrics.phase_time import Window, is_in_run
from ekd_nemo.metrics.series import Telemetry
from ekd_nemo.records.phases import PHASES
from ekd_nemo.units import NS_PER_S

_LONG: Final = 0.01  # of a run: a phase that a picture shows by itself
_BLOCK: Final = 1 / 12  # of a run: what is shorter, in one block


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """One run's accelerators over time; attempts follow each other without the time between them.

    Attributes:
        edges_s: [B+1] bounds of the bins since the run began.
        power_w: [B] mean power of all accelerators that the run held then; NaN where one of them has no sample.
        devices_w: [B] mean power by device (UUID).
        phases: stretches of the first rank as start, end and name, in s.
        end_s: when the run ends, inside the last bin.
    """

    edges_s: Floats
    power_w: Floats
    devices_w: dict[str, Floats]
    phases: tuple[tuple[float, float, str], ...]
    end_s: float

    @property
    def middles_s(self) -> Floats:
        """[B] middles of the bins."""
        return (self.edges_s[:-1] + self.edges_s[1:]) / 2

    @property
    def energy_so_far_j(self) -> Floats:
        """[B+1] energy since the run began, at the bins' edges; level where nothing is known."""
        widths_s = np.diff(np.minimum(self.edges_s, self.end_s))
        steps = np.where(np.isnan(self.power_w), 0.0, self.power_w) * widths_s
        return np.append(0.0, np.cumsum(steps))

    def phase_shares(self, edges_s: Floats) -> dict[str, Floats]:
        """[E-1] share of the time that each phase has between the edges; idle is the rest."""
        shares = {phase: np.zeros(len(edges_s) - 1) for phase in PHASES}
        for start, end, phase in self.phases:
            inside = np.minimum(edges_s[1:], end) - np.maximum(edges_s[:-1], start)
            shares[phase] += np.maximum(inside, 0.0) / np.diff(edges_s)
        return {phase: share for phase, share in shares.items() if share.any()}

    @property
    def phase_edges_s(self) -> Floats:
        """Bounds between which a picture shows shares: each long phase alone, what is shorter in blocks of many.

        Phases that take turns at every step would otherwise beat against the bins of a picture.
        """
        long = {(s, e) for s, e, _ in self.phases if e - s >= _LONG * self.end_s}
        bounds = sorted({0.0, self.end_s}.union(*long))
        edges = [0.0]
        for start, end in pairwise(bounds):
            parts = (
                1 if (start, end) in long else int(np.ceil((end - start) / (_BLOCK * self.end_s)))
            )
            edges.extend(np.linspace(start, end, parts + 1)[1:])
        return np.array(edges)


def profile_of(ledger: Ledger, telemetry: Telemetry, bin_s: float) -> Profile | None:
    """The profile of a run with bins of `bin_s`; None where no attempt has a phase that E_run counts."""
    starts = starts_of(ledger)
    if not starts:
        return None
    count = max(1, int(np.ceil(ledger.duration_s / bin_s)))
    edges_s = np.arange(count + 1) * bin_s
    held = _held(ledger)
    devices: dict[str, Floats] = {}
    width_s = np.diff(np.minimum(edges_s, ledger.duration_s))
    power_w, is_held = np.zeros(count), np.zeros(count, np.bool_)
    for (boot, uuid), keys in device_keys(telemetry.series).items():
        windows = [w for w in ledger.windows_on(boot) if (boot, uuid, w.attempt) in held]
        if not windows:
            continue
        power, held_s = _binned(device_of(keys, telemetry.series), windows, starts, edges_s)
        devices[uuid] = _first_known(devices.get(uuid), power)
        inside = (held_s > 0) & (width_s > 0)
        share = np.minimum(held_s, width_s) / np.where(inside, width_s, 1.0)
        power_w += np.where(inside, power * share, 0.0)
        is_held |= inside
    if not devices:
        return None
    return Profile(
        edges_s,
        np.where(is_held, power_w, np.nan),
        devices,
        _phases(ledger, starts),
        ledger.duration_s,
    )


def starts_of(ledger: Ledger) -> dict[int, float]:
    """When each attempt begins in the run's own time, in s; none where no phase counts in E_run."""
    starts: dict[int, float] = {}
    since_s = 0.0
    for attempt, length_ns in ledger.lengths_ns.items():
        starts[attempt] = since_s
        since_s += length_ns / NS_PER_S
    return starts if since_s > 0 else {}


def _held(ledger: Ledger) -> set[tuple[str, str, int]]:
    """Boot id, UUID and attempt of the accelerators whose energy E_run counts.

    A job that went on somewhere else, or an evaluation in a job of its own, had others.
    """
    return {
        (row.boot_id, row.uuid, row.attempt)
        for row in ledger.rows
        if row.in_run and row.role != "host" and row.phase is not None
    }


def _binned(
    device: Device, windows: Sequence[Window], starts: dict[int, float], edges_s: Floats
) -> tuple[Floats, Floats]:
    """One device in each bin.

    Returns:
        [B] mean power over the part of the bin that samples cover, NaN without any; [B] time for which the run held
        the device, in s.
    """
    energy_j, covered_s, held_s = (np.zeros(len(edges_s) - 1) for _ in range(3))
    for window in windows:
        offset_ns = window.run_start_ns - starts[window.attempt] * NS_PER_S
        edges: Ints = np.clip(
            np.rint(edges_s * NS_PER_S + offset_ns).astype(np.int64),
            window.run_start_ns,
            window.run_end_ns,
        )
        energy_j += device.best.energy_j(edges[:-1], edges[1:])
        covered_s += device.best.covered_s(edges[:-1], edges[1:])
        held_s += np.diff(edges) / NS_PER_S
    known = covered_s > 0
    power_w = np.where(known, energy_j / np.where(known, covered_s, 1.0), np.nan)
    return power_w, held_s


def _first_known(one: Floats | None, other: Floats) -> Floats:
    """A device of two boots: where the first has no sample, the other's."""
    return other if one is None else np.where(np.isnan(one), other, one)


def _phases(ledger: Ledger, starts: dict[int, float]) -> tuple[tuple[float, float, str], ...]:
    """The stretches of the lowest rank of each attempt, inside what E_run spans."""
    found: list[tuple[float, float, str]] = []
    for attempt, start_s in starts.items():
        ranks = [r for r in ledger.ranks if r.key.attempt == attempt and is_in_run(r)]
        if not ranks:
            continue
        rank = min(ranks, key=lambda r: r.key.rank)
        window = next(w for w in ledger.windows[rank.key.boot_id] if w.attempt == attempt)
        s = rank.stretches
        found.extend(
            (
                start_s + (int(start) - window.run_start_ns) / NS_PER_S,
                start_s + (int(end) - window.run_start_ns) / NS_PER_S,
                PHASES[int(phase)],
            )
            for start, end, phase in zip(s.start_ns, s.end_ns, s.phase, strict=True)
            if end <= window.run_end_ns
        )
    return tuple(found)
