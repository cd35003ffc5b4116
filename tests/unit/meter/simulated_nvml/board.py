"""A board with a scripted power curve, and a sensor and a counter that see it as hardware does."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

REFRESH_S = 0.1
INSTANT_WINDOW_S = 0.025
AVERAGE_WINDOW_S = 1.0


@dataclass(kw_only=True)
class Board:
    """Times in s since the script began, power in W.

    Attributes:
        curve: (time, power) points, power linear between them and constant outside.
        gain: what the board's sensor multiplies the truth by.
        resets: times at which the counter starts from 0 again.
        unsupported: names of functions and `field N` that answer NOT_SUPPORTED.
        hang_file: while it exists, calls do not return.
        lost: (from, to): calls made meanwhile say that the GPU is lost.
    """

    uuid: str
    curve: Sequence[tuple[float, float]]
    name: str = "NVIDIA H100 80GB HBM3"
    architecture: int = 9
    counter_origin_mj: int = 123_456_789
    gain: float = 1.0
    phase_s: float = 0.03
    mig: bool = False
    power_limit_mw: int = 700_000
    resets: Sequence[float] = ()
    unsupported: Sequence[str] = ()
    hang_file: str = ""
    lost: Sequence[tuple[float, float]] = ()
    calls: list[str] = field(default_factory=list)

    def power_w(self, t_s: float) -> float:
        """True power."""
        before = (float("-inf"), self.curve[0][1])
        for t_point_s, power_w in self.curve:
            if t_s < t_point_s:
                if before[0] == float("-inf"):
                    return power_w
                share = (t_s - before[0]) / (t_point_s - before[0])
                return before[1] + share * (power_w - before[1])
            before = (t_point_s, power_w)
        return before[1]

    def energy_j(self, begin_s: float, end_s: float) -> float:
        """The integral of true power, exact: trapezoids between the curve's points."""
        knots = [begin_s, *(t for t, _ in self.curve if begin_s < t < end_s), end_s]
        total_j = 0.0
        for left_s, right_s in pairwise(knots):
            inside_s = (right_s - left_s) * 1e-9
            mean_w = (self.power_w(left_s + inside_s) + self.power_w(right_s - inside_s)) / 2
            total_j += mean_w * (right_s - left_s)
        return total_j

    def counter_mj(self, t_s: float, lead_s: float = 0.0) -> int:
        """What the energy counter says, having begun to count `lead_s` before the script."""
        reset_s = max((r for r in self.resets if r <= t_s), default=None)
        if reset_s is None:
            return self.counter_origin_mj + round(1000 * self.gain * self.energy_j(-lead_s, t_s))
        return round(1000 * self.gain * self.energy_j(reset_s, t_s))

    def refreshed_s(self, t_s: float) -> float:
        """When the sensor last took a value."""
        return self.phase_s + REFRESH_S * ((t_s - self.phase_s) // REFRESH_S)

    def sensor_mw(self, t_s: float, window_s: float) -> int:
        """Mean power over the window before the last refresh."""
        end_s = self.refreshed_s(t_s)
        return round(1000 * self.gain * self.energy_j(end_s - window_s, end_s) / window_s)


UNTIL_BEGUN_S = 1e6


@dataclass
class Machine:
    """The boards, and when their scripts begin: at `origin_mono_ns`, or when `begin` is called.

    Before that, power is what it is at the beginning of the script, and counters count it.
    """

    boards: list[Board]
    origin_mono_ns: int | None = 0
    loaded_mono_ns: int = 0
    folder: Path | None = None

    def begin(self) -> None:
        """Begin the scripts now, in every process that has loaded this machine."""
        assert self.folder is not None
        self.origin_mono_ns = time.monotonic_ns()
        part = self.folder / "begin.part"
        part.write_text(str(self.origin_mono_ns))
        part.rename(self.folder / "begin")

    def times_s(self, mono_ns: int) -> tuple[float, float]:
        """Script time, and how long before the script's beginning the counters were 0."""
        if self.origin_mono_ns is None and self.folder and (self.folder / "begin").exists():
            self.origin_mono_ns = int((self.folder / "begin").read_text())
        lead_s = UNTIL_BEGUN_S
        if self.origin_mono_ns is not None:
            lead_s = (self.origin_mono_ns - self.loaded_mono_ns) / 1e9
        return (mono_ns - self.loaded_mono_ns) / 1e9 - lead_s, lead_s

    def save(self) -> Path:
        """Write what `load` reads."""
        assert self.folder is not None
        boards = [{k: v for k, v in vars(b).items() if k != "calls"} for b in self.boards]
        path = self.folder / "boards.json"
        path.write_text(json.dumps(boards))
        return path

    @classmethod
    def load(cls, path: Path) -> "Machine":
        """A machine from a file, its scripts not begun."""
        boards = [Board(**board) for board in json.loads(path.read_text())]
        return cls(boards, None, time.monotonic_ns(), path.parent)
