"""How well the node's wall clock is kept, as the kernel knows from whoever disciplines it (NTP, PTP).

Energy is a matter of each node's monotonic clock; wall time only lays the nodes side by side. The
kernel's bound on its error is what that is worth.
"""

import ctypes
from dataclasses import dataclass
from typing import Final

from ekd_nemo.records.clock import Instant

STEP_NS: Final = 100_000_000  # slewing moves the wall clock by 0.5 ms a second at most
_STA_UNSYNC: Final = 0x40


class _Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2) up to the fields that are read, and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


@dataclass(frozen=True, slots=True)
class WallClock:
    """What the kernel says of its wall clock.

    Attributes:
        is_synchronised: whether something disciplines it.
        max_error_us: the kernel's bound on its error; None while nothing does.
    """

    is_synchronised: bool
    max_error_us: int | None


def read_wall_clock() -> WallClock | None:
    """The state of the wall clock now; None where the kernel does not tell (some sandboxes)."""
    libc = ctypes.CDLL(None, use_errno=True)
    timex = _Timex()
    if libc.adjtimex(ctypes.byref(timex)) < 0:
        return None
    if timex.status & _STA_UNSYNC:
        return WallClock(is_synchronised=False, max_error_us=None)
    return WallClock(is_synchronised=True, max_error_us=int(timex.maxerror))


class StepDetector:
    """Notices when somebody sets the wall clock."""

    def __init__(self, at: Instant) -> None:
        """Remember how the two clocks lie now."""
        self._difference_ns = at.wall_ns - at.mono_ns

    def step_ns(self, at: Instant) -> int:
        """By how much the wall clock was set since the last call; 0 if it was not."""
        difference_ns = at.wall_ns - at.mono_ns
        step_ns = difference_ns - self._difference_ns
        self._difference_ns = difference_ns
        return step_ns if abs(step_ns) >= STEP_NS else 0
