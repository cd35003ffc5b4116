"""A board with a scripted power curve, and a sensor and a counter that see it as hardware does."""

import json
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
        stalls: (time, duration): calls made meanwhile return when it ends.
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
    stalls: Sequence[tuple[float, float]] = ()
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

    def counter_mj(self, t_s: float) -> int:
        """What the energy counter says."""
        reset_s = max((r for r in self.resets if r <= t_s), default=None)
        if reset_s is None:
            return self.counter_origin_mj + round(1000 * self.gain * self.energy_j(0.0, t_s))
        return round(1000 * self.gain * self.energy_j(reset_s, t_s))

    def refreshed_s(self, t_s: float) -> float:
        """When the sensor last took a value."""
        return self.phase_s + REFRESH_S * ((t_s - self.phase_s) // REFRESH_S)

    def sensor_mw(self, t_s: float, window_s: float) -> int:
        """Mean power over the window before the last refresh."""
        end_s = self.refreshed_s(t_s)
        return round(1000 * self.gain * self.energy_j(end_s - window_s, end_s) / window_s)


@dataclass
class Machine:
    """The boards, and when their scripts began."""

    boards: list[Board]
    origin_mono_ns: int

    def save(self, path: Path) -> Path:
        """Write what `load` reads."""
        boards = [{k: v for k, v in vars(b).items() if k != "calls"} for b in self.boards]
        path.write_text(json.dumps({"origin_mono_ns": self.origin_mono_ns, "boards": boards}))
        return path

    @classmethod
    def load(cls, path: Path) -> "Machine":
        """A machine from a file."""
        raw = json.loads(path.read_text())
        return cls([Board(**board) for board in raw["boards"]], raw["origin_mono_ns"])
