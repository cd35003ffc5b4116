"""Notices a run in which nothing happens any more, and names the rank that fell silent first.

The ranks' marks are the sign of life: as long as any rank writes one, the run goes on. Ranks wait for each other, so
one that hangs silences all; it is the one whose process is stopped or gone, else the one whose last mark is the oldest.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from ekd_nemo.records.rundir import RunDir

_TAIL_BYTES: Final = 4096
_PROC: Final = Path("/proc")
# The kernel's letters for processes that do not run although they could.
STATES: Final = {
    "T": "stopped",
    "t": "stopped by a debugger",
    "D": "waiting for a disk",
    "Z": "dead",
}
GONE: Final = "gone"
NOT_STARTED: Final = "not started"
ALIVE: Final = "alive"


@dataclass(frozen=True)
class Silent:
    """A rank when the run had gone silent.

    Attributes:
        state: of its process: alive, stopped, gone, ...; "unknown" where nobody looked.
        last_wall_ns: wall clock of its last mark; None if it has written none.
        last: what that mark said, for the reader.
    """

    rank: int
    node: str
    state: str
    last_wall_ns: int | None
    last: str

    def blame(self) -> tuple[bool, bool, int, int]:
        """Sorts the likeliest culprit first; a wait for a disk may be momentary and is only told."""
        alive = self.state in {ALIVE, STATES["D"], "unknown"}
        return (alive, self.last_wall_ns is not None, self.last_wall_ns or 0, self.rank)


class SilenceWatch:
    """Looks at the marks files of all ranks.

    Args:
        run: the run.
        ranks: how many there are.
        silent_s: how long nothing may happen.
        clock_s: a monotonic clock.
    """

    def __init__(
        self,
        run: RunDir,
        ranks: int,
        silent_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """Silence counts from now."""
        self._run, self._silent_s, self._clock_s = run, silent_s, clock_s
        self._paths = [run.marks(rank) for rank in range(ranks)]
        self._sizes: dict[Path, int] = {}
        self._last_s = clock_s()
        self.is_silent()

    def is_silent(self) -> bool:
        """Look; whether no marks file has grown for too long."""
        for path in self._paths:
            size = path.stat().st_size if path.is_file() else 0
            if self._sizes.get(path) != size:
                self._sizes[path] = size
                self._last_s = self._clock_s()
        return self.silence_s() > self._silent_s

    def silence_s(self) -> float:
        """How long nothing has happened, as of the last look."""
        return self._clock_s() - self._last_s


def last_mark(path: Path) -> Mapping[str, Any] | None:
    """The last whole line of a marks file; None without one."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue  # torn by a kill; the one before is whole
        if isinstance(found, dict):
            return cast("dict[str, Any]", found)
    return None


def describe_mark(mark: Mapping[str, Any]) -> str:
    """A mark in words."""
    kind = mark.get("kind")
    if kind == "step":
        return f"the end of step {mark.get('step')}"
    verb = {"phase_begin": "the beginning", "phase_end": "the end"}.get(str(kind), "a mark")
    return f"{verb} of {mark.get('phase')}"


def process_state(pid: int) -> str:
    """What the kernel says of a process, in a word."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return GONE
    return STATES.get(stat.rpartition(")")[2].split()[0], ALIVE)


def has_ended(state: str) -> bool:
    """Whether a process in a state of `process_state`, or one that never started, does nothing any more."""
    return state in {GONE, STATES["Z"], NOT_STARTED}


def silent_ranks(
    run: RunDir, nodes: Mapping[int, str], states: Mapping[int, str], attempt: int
) -> list[Silent]:
    """All ranks of a silent run, the likeliest culprit first.

    Args:
        run: the run.
        nodes: the node of each rank.
        states: of the processes, by rank; what is missing is unknown.
        attempt: marks of earlier attempts say nothing.
    """
    found: list[Silent] = []
    for rank, node in nodes.items():
        mark = last_mark(run.marks(rank))
        if mark is not None and mark.get("attempt") != attempt:
            mark = None
        found.append(
            Silent(
                rank=rank,
                node=node,
                state=states.get(rank, "unknown"),
                last_wall_ns=None if mark is None else int(mark["t_wall_ns"]),
                last="nothing yet" if mark is None else describe_mark(mark),
            )
        )
    return sorted(found, key=Silent.blame)


def verdict(ranks: Iterable[Silent], silence_s: float) -> str:
    """The one line that names the rank."""
    first, *others = ranks
    return (
        f"hung: no rank has written a mark for {silence_s:.0f} s; first to fall silent: "
        f"rank {first.rank} on {first.node} (its process is {first.state}), its last mark: {first.last}; "
        f"{len(others)} other rank(s) wait"
    )
