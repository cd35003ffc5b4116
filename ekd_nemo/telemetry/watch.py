"""The processes for which a sampler lives: when all have been gone for a while, the run is over."""

import time
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
_STATE, _START_TIME = 0, 19  # fields of /proc/PID/stat after the command's name


class Watch:
    """A set of processes, each known by its id and start time, so that a reused id is not it.

    Args:
        linger_s: how long after the last one's end the run is over; a relaunch may come meanwhile.
    """

    def __init__(self, linger_s: float) -> None:
        """Follow nobody yet: without anybody to follow, the run is never over."""
        self._linger_s = linger_s
        self._start_by_pid: dict[int, str] = {}
        self._alone_since_s: float | None = None

    def add(self, pid: int) -> None:
        """Follow a process; one that cannot be seen (gone, another pid namespace) counts as ended."""
        start = start_time(pid)
        if start is None:
            self._note_if_alone()
            return
        self._start_by_pid[pid] = start
        self._alone_since_s = None

    def is_over(self) -> bool:
        """Whether all followed processes have been gone for long enough; asks the kernel."""
        ended = [pid for pid, start in self._start_by_pid.items() if start_time(pid) != start]
        for pid in ended:
            del self._start_by_pid[pid]
        if ended:
            self._note_if_alone()
        since_s = self._alone_since_s
        return since_s is not None and time.monotonic() - since_s >= self._linger_s

    def _note_if_alone(self) -> None:
        if not self._start_by_pid and self._alone_since_s is None:
            self._alone_since_s = time.monotonic()


def start_time(pid: int) -> str | None:
    """When a process began, in the kernel's ticks since boot; None if it has ended (zombies have)."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[_STATE] in "ZX" else fields[_START_TIME]
