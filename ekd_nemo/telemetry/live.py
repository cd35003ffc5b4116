"""What a run is doing now, from its growing files: a view for the exporter, not the ledger.

Energy is shared out by the phase of the lowest rank that occupies a device, at the moment of each
sample. Windows are by wall clock, so that they span nodes.
"""

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ekd_nemo.records.lines import (
    CounterLine,
    DeviceLine,
    Line,
    MarkLine,
    PhaseBegin,
    PhaseEnd,
    PowerLine,
    StateLine,
    StepMark,
)
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.follow import Follower
from ekd_nemo.units import MJ_PER_J, MW_PER_W, NS_PER_S

WINDOW_S: Final = 60.0
FORGET_S: Final = 600.0  # longer than any step takes
GAP_S: Final = 2.0
ENDS_BYTES: Final = 1 << 20
NO_PHASE: Final = "idle"


@dataclass(slots=True)
class LiveDevice:
    """One device of a run.

    Attributes:
        energy_j: the device's counter; None until it has been read.
        window: (wall time [ns], energy [J]) of the intervals between samples of the last minute.
        phase_energy_j: since the exporter began to follow, by (rank, phase).
    """

    node: str
    uuid: str
    meter: str = ""
    source: str = ""
    role: str = ""
    power: PowerLine | None = None
    state: StateLine | None = None
    energy_j: float | None = None
    window: deque[tuple[int, float]] = field(default_factory=deque[tuple[int, float]])
    phase_energy_j: dict[tuple[str, str], float] = field(
        default_factory=lambda: defaultdict[tuple[str, str], float](float)
    )


@dataclass(slots=True)
class LiveRank:
    """One rank of a run.

    Attributes:
        window: (wall time [ns], tokens) of the steps of the last minute and the one before.
        tokens: since the exporter began to follow.
    """

    rank: int
    node: str
    uuids: tuple[str, ...]
    replica: int
    attempt: int
    phases: list[str] = field(default_factory=list[str])
    step: int | None = None
    tokens: int = 0
    window: deque[tuple[int, int]] = field(default_factory=deque[tuple[int, int]])

    @property
    def phase(self) -> str:
        """The innermost open phase."""
        return self.phases[-1] if self.phases else NO_PHASE


class LiveRun:
    """Follows the files of one run directory."""

    def __init__(self, run: RunDir) -> None:
        """Nothing is read until `refresh`."""
        self.run = run
        self.devices: dict[tuple[str, str], LiveDevice] = {}
        self.ranks: dict[int, LiveRank] = {}
        self.newest_ns = 0
        self._attempt = 0
        self._followers: dict[int, Follower] = {}

    def refresh(self) -> None:
        """Take in what has been written since the last call."""
        lines = [line for follower in self._follow() for line in follower.new_lines()]
        for line in sorted(lines, key=lambda line: (line.node, line.boot_id, line.t_mono_ns)):
            self.newest_ns = max(self.newest_ns, line.t_wall_ns)
            if isinstance(line, MarkLine):
                self._take_mark(line)
            else:
                self._take_telemetry(line)
        self._forget_before(self.newest_ns - round(WINDOW_S * NS_PER_S))

    def _follow(self) -> Iterator[Follower]:
        """One follower a file; by inode, for a sampler renames a file that has become long."""
        for path, ends_bytes in (
            *((path, ENDS_BYTES) for path in self.run.power_files()),
            *((path, None) for path in self.run.marks_files()),
        ):
            try:
                inode = path.stat().st_ino
            except FileNotFoundError:
                continue  # packed since it was listed
            follower = self._followers.setdefault(inode, Follower(path, ends_bytes=ends_bytes))
            follower.path = path
            yield follower

    def _take_telemetry(self, line: Line) -> None:
        if not isinstance(line, DeviceLine | PowerLine | CounterLine | StateLine):
            return
        key = (line.node, line.uuid)
        device = self.devices.setdefault(key, LiveDevice(line.node, line.uuid))
        device.meter, device.source = line.meter, line.source
        if isinstance(line, DeviceLine):
            device.role = line.role
        elif isinstance(line, CounterLine):
            device.energy_j = line.e_mj / MJ_PER_J
        elif isinstance(line, StateLine):
            device.state = line
        else:
            self._take_power(device, line)

    def _take_power(self, device: LiveDevice, line: PowerLine) -> None:
        before, device.power = device.power, line
        if before is None or before.sampler != line.sampler:
            return
        duration_s = (line.t_mono_ns - before.t_mono_ns) / NS_PER_S
        watts = [w for w in (power_w(before), power_w(line)) if w is not None]
        if not 0 < duration_s <= GAP_S or not watts:
            return
        energy_j = duration_s * sum(watts) / len(watts)
        device.window.append((line.t_wall_ns, energy_j))
        rank = self._rank_on(device.uuid)
        owner = ("", NO_PHASE) if rank is None else (str(rank.rank), rank.phase)
        device.phase_energy_j[owner] += energy_j

    def _rank_on(self, uuid: str) -> LiveRank | None:
        """The lowest rank that occupies a device."""
        here = (rank for rank in self.ranks.values() if self._works(rank) and uuid in rank.uuids)
        return min(here, key=lambda rank: rank.rank, default=None)

    def working(self) -> list[LiveRank]:
        """The ranks of the newest attempt, by number: it may have fewer than one before."""
        return [self.ranks[n] for n in sorted(self.ranks) if self._works(self.ranks[n])]

    def _works(self, rank: LiveRank) -> bool:
        return rank.attempt == self._attempt

    def _take_mark(self, line: MarkLine) -> None:
        rank = self.ranks.get(line.rank)
        if rank is not None and line.attempt < rank.attempt:
            # of an attempt on another node, whose lines come later where files are read for the first time
            rank.tokens += line.tokens if isinstance(line, StepMark) else 0
            return
        if rank is None or rank.attempt < line.attempt:
            replica = line.parallel.get("data", line.rank)
            kept = 0 if rank is None else rank.tokens
            rank = LiveRank(line.rank, line.node, tuple(line.uuids), replica, line.attempt)
            rank.tokens = kept
            self.ranks[line.rank] = rank
            self._attempt = max(self._attempt, line.attempt)
        if isinstance(line, PhaseBegin):
            rank.phases.append(line.phase)
        elif isinstance(line, PhaseEnd) and line.phase in rank.phases:
            while rank.phases.pop() != line.phase:
                pass
        elif isinstance(line, StepMark):
            rank.step = line.step
            rank.tokens += line.tokens
            rank.window.append((line.t_wall_ns, line.tokens))

    def _forget_before(self, wall_ns: int) -> None:
        """Keep the steps since then and the one before, and the energy since that one."""
        kept_ns = wall_ns
        for rank in self.ranks.values():
            over = bool(rank.window) and self.newest_ns - rank.window[-1][0] > FORGET_S * NS_PER_S
            if over or not self._works(rank):
                rank.window.clear()
            while len(rank.window) > 2 and rank.window[1][0] < wall_ns:
                rank.window.popleft()
            if rank.window:
                kept_ns = min(kept_ns, rank.window[0][0])
        for device in self.devices.values():
            while device.window and device.window[0][0] < kept_ns:
                device.window.popleft()

    def replicas(self) -> list[LiveRank]:
        """One rank of each data-parallel replica: the lowest; tokens count once."""
        lowest: dict[int, LiveRank] = {}
        for rank in reversed(self.working()):
            lowest[rank.replica] = rank
        return list(lowest.values())

    def rates(self) -> tuple[float, float] | None:
        """Tokens per second and accelerator energy per token [J] over the last minute's steps.

        From the end of the oldest step kept to the end of the newest; None before two steps have
        ended or without energy between them, and once no more steps end.
        """
        windows = [rank.window for rank in self.replicas() if len(rank.window) > 1]
        if not windows:
            return None
        tokens = sum(tokens for window in windows for _, tokens in list(window)[1:])
        begin_ns = min(window[0][0] for window in windows)
        end_ns = max(window[-1][0] for window in windows)
        if self.newest_ns - end_ns > WINDOW_S * NS_PER_S + (end_ns - begin_ns):
            return None
        energy_j = sum(
            energy_j
            for device in self.devices.values()
            if device.role == "accelerator"
            for t_ns, energy_j in device.window
            if begin_ns < t_ns <= end_ns
        )
        if tokens <= 0 or energy_j <= 0 or end_ns <= begin_ns:
            return None
        return tokens * NS_PER_S / (end_ns - begin_ns), energy_j / tokens


def power_w(line: PowerLine) -> float | None:
    """The power to show: the average, else the instant one."""
    power_mw = line.p_avg_mw if line.p_avg_mw is not None else line.p_inst_mw
    return None if power_mw is None else power_mw / MW_PER_W
