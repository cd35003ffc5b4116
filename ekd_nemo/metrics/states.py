"""Slow facts of one run over its own time: utilisation, memory, temperature and clock of devices, and of the hosts.

They are read apart from power and energy, by whoever draws them: no figure of the summary needs them.
"""

# pyarrow ships no types.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from ekd_nemo.metrics.columns import parsed_line, split_file
from ekd_nemo.metrics.curve import Floats, Ints
from ekd_nemo.metrics.ledger import Ledger
from ekd_nemo.metrics.phase_time import Window
from ekd_nemo.metrics.profile import starts_of
from ekd_nemo.records.gaps import gap_threshold_s
from ekd_nemo.records.jsonl import ReadReport
from ekd_nemo.records.lines import HostLine, StateLine
from ekd_nemo.records.segments import Segment, each_file
from ekd_nemo.units import NS_PER_S

DEVICE_STATES: Final = ("util_pct", "memory_used_bytes", "temperature_c", "clock_sm_mhz")
HOST_STATES: Final = ("cpu_util_pct", "ram_used_bytes")
_STATES: Final = {"state": DEVICE_STATES, "host": HOST_STATES}


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Mean of each fact in each bin of a profile, straight between readings without a gap; NaN where nothing is known.

    Attributes:
        devices: by fact (`util_pct`, ...), then by UUID of the accelerators that ranks occupied.
        hosts: by fact (`cpu_util_pct`, ...), then by node.
    """

    devices: Mapping[str, Mapping[str, Floats]]
    hosts: Mapping[str, Mapping[str, Floats]]


class _Key(NamedTuple):
    """Whose fact; the name is a UUID, or a node where `of` is a fact of hosts."""

    of: str
    boot_id: str
    name: str


def states_of(ledger: Ledger, files: Iterable[Path], edges_s: Floats) -> States:
    """The facts of a run, in the bins of its profile.

    Args:
        ledger: of the run.
        files: what its samplers wrote, JSON lines and segments.
        edges_s: [B+1] the profile's bins, of even width.

    Raises:
        OSError: if a file cannot be read.
        DataError: if a segment is broken.
    """
    samples: dict[_Key, list[tuple[Ints, Floats]]] = defaultdict(list)
    for key, at_ns, value in _samples(files):
        samples[key].append((at_ns, value))
    occupied = _occupied(ledger)
    starts = starts_of(ledger)
    devices: dict[str, dict[str, Floats]] = defaultdict(dict)
    hosts: dict[str, dict[str, Floats]] = defaultdict(dict)
    for key in sorted(samples):
        windows = ledger.windows_on(key.boot_id)
        of_device = key.of in DEVICE_STATES
        if of_device and (key.boot_id, key.name) not in occupied:
            continue
        binned = _binned(samples[key], windows, starts, edges_s)
        known = (devices if of_device else hosts)[key.of]
        before = known.get(key.name)
        known[key.name] = binned if before is None else np.where(np.isnan(before), binned, before)
    return States(devices, hosts)


def peaks_of(ledger: Ledger, files: Iterable[Path], fact: str) -> dict[str, float]:
    """The largest reading of a fact while the run lasted, by UUID of the accelerators that ranks occupied.

    Args:
        ledger: of the run; its attempts end with the last checkpoint, so evaluation is not among them.
        files: what its samplers wrote, JSON lines and segments.
        fact: one of DEVICE_STATES.

    Raises:
        OSError: if a file cannot be read.
        DataError: if a segment is broken.
    """
    assert fact in DEVICE_STATES
    occupied, peaks = _occupied(ledger), dict[str, float]()
    for key, at_ns, value in _samples(files):
        if key.of != fact or (key.boot_id, key.name) not in occupied:
            continue
        for window in ledger.windows_on(key.boot_id):
            inside = value[(at_ns >= window.run_start_ns) & (at_ns < window.run_end_ns)]
            if len(inside):
                peaks[key.name] = max(peaks.get(key.name, 0.0), float(inside.max()))
    return peaks


def _occupied(ledger: Ledger) -> set[tuple[str, str]]:
    """Boot id and UUID of the devices of the run's ranks."""
    return {(rank.key.boot_id, uuid) for rank in ledger.ranks for uuid in rank.key.uuids}


def _samples(files: Iterable[Path]) -> Iterator[tuple[_Key, Ints, Floats]]:
    """Facts in JSON lines and segments."""
    return each_file(files, _from_lines, _from_segment)


def _from_lines(path: Path) -> Iterator[tuple[_Key, Ints, Floats]]:
    """Facts in a file of JSON lines; what is no record is skipped, as the ledger has counted it."""
    rows: dict[_Key, list[tuple[int, float]]] = defaultdict(list)
    report = ReadReport()
    for first, data in split_file(path):
        for number, raw in enumerate(data.split(b"\n"), start=first):
            if b'"state"' not in raw and b'"host"' not in raw:
                continue  # spares the parsing of nine lines of ten
            line = parsed_line(path, number, raw, report)
            if not isinstance(line, StateLine | HostLine):
                continue
            name = line.uuid if isinstance(line, StateLine) else line.node
            for fact in _STATES[line.kind]:
                value = getattr(line, fact)
                if value is not None:
                    rows[_Key(fact, line.boot_id, name)].append((line.t_mono_ns, value))
    for key, pairs in rows.items():
        yield (
            key,
            np.array([at for at, _ in pairs], np.int64),
            np.array([value for _, value in pairs], np.float64),
        )


def _from_segment(path: Path) -> Iterator[tuple[_Key, Ints, Floats]]:
    """Facts in a segment, a column each."""
    segment = Segment(path)
    for number, one in enumerate(segment.series):
        for fact in _STATES.get(one.kind, ()):
            table = segment.read(number, ["t_mono_ns", fact])
            table = table.filter(table.column(fact).is_valid())
            if table.num_rows:
                name = (one.uuid if one.kind == "state" else one.node) or ""
                yield (
                    _Key(fact, one.boot_id or "", name),
                    table.column("t_mono_ns").to_numpy(),
                    table.column(fact).to_numpy().astype(np.float64),
                )


def _binned(
    samples: Sequence[tuple[Ints, Floats]],
    windows: Sequence[Window],
    starts: Mapping[int, float],
    edges_s: Floats,
) -> Floats:
    """Mean of the samples in each bin."""
    bins, width_s = len(edges_s) - 1, float(edges_s[1])
    total, count = np.zeros(bins), np.zeros(bins)
    at_ns = np.concatenate([at for at, _ in samples])
    values = np.concatenate([value for _, value in samples])
    for window in windows:
        inside = (at_ns >= window.run_start_ns) & (at_ns < window.run_end_ns)
        since_s = (at_ns[inside] - window.run_start_ns) / NS_PER_S + starts[window.attempt]
        where = np.minimum((since_s / width_s).astype(np.int64), bins - 1)
        total += np.bincount(where, values[inside], bins)
        count += np.bincount(where, minlength=bins)
    means = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return _bridged(means, gap_threshold_s(np.unique(at_ns)) / width_s)


def _bridged(means: Floats, bins_at_most: float) -> Floats:
    """Bins between two samples that have no gap between them, interpolated; ends and gaps stay open."""
    known = np.flatnonzero(~np.isnan(means))
    if not len(known):
        return means
    bins = np.arange(len(means))
    after = np.searchsorted(known, bins)
    inside = (after > 0) & (after < len(known))
    left, right = known[np.maximum(after - 1, 0)], known[np.minimum(after, len(known) - 1)]
    near = inside & (right - left <= bins_at_most + 1)
    return np.where(np.isnan(means) & near, np.interp(bins, known, means[known]), means)
