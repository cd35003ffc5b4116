"""Two worlds, the student's and the teacher's, joined by one more process group.

Each world has its own default group and knows nothing of the other. They meet through the run
directory: the student's first rank writes where its store and its roll call listen. The joint group
holds the student's ranks first, then the teacher's, and carries point-to-point messages only.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from ekd_nemo.errors import RunError
from ekd_nemo.records.atomic import write_text
from ekd_nemo.teacher.rollcall import Presence, RollCall

Side = Literal["student", "teacher"]
MEETING_LIMIT_S = 1800.0  # a rank may wait in a queue of file reads or imports for minutes
# Also of the store: NCCL connects two ranks at their first message, and the teacher's waits there for the student's,
# which may still be reading a checkpoint; torch's own limit is five minutes.
_MEETING_LIMIT = timedelta(seconds=MEETING_LIMIT_S)
END_S = 0.5  # by which word of the student's end may come after another rank's leaving
VERDICT_S = 5.0  # until the roll call has named who is missing
_POLL_S = 0.1
_FIRST_STEP = "first_step"


@dataclass(frozen=True)
class Meeting:
    """What the student's first rank writes; `token` keeps strangers and earlier launches out."""

    host: str
    store_port: int
    roll_port: int
    token: str


@dataclass(frozen=True)
class Seat:
    """A rank's place in the joint group."""

    side: Side
    rank: int
    students: int
    teachers: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"the {self.side}'s rank {self.rank}"

    @property
    def index(self) -> int:
        """Rank in the joint group."""
        return self.rank if self.side == "student" else self.students + self.rank


def meeting_file(logs: Path) -> Path:
    """Where this launch meets: one file for each attempt and each start of ranks in it."""
    attempt = os.environ.get("EKD_ATTEMPT", "1")
    start = "".join(c for c in os.environ.get("TORCHELASTIC_RUN_ID", "") if c.isalnum() or c == "-")
    return logs / f"split-{attempt}-{start}.json"


class Joint:
    """This rank's ends of what joins the worlds."""

    def __init__(
        self,
        seat: Seat,
        store: dist.Store,
        watch: RollCall | Presence,
        group: dist.ProcessGroup,
        file: Path,
    ) -> None:
        """Hold the ends; see `join`."""
        self.seat, self.store, self.group = seat, store, group
        self._watch, self._file = watch, file

    @property
    def ended(self) -> bool:
        """Whether the student is done, however far it came; asked by the teacher."""
        return isinstance(self._watch, Presence) and self._watch.ended.is_set()

    def send(self, message: Tensor, target: int) -> Any:
        """Start sending bytes to a rank of the joint group."""
        return self.group.send([message], target, 0)

    def receive(self, message: Tensor, source: int) -> Any:
        """Start receiving bytes from a rank of the joint group."""
        return self.group.recv([message], source, 0)

    def tell_first_step(self, step: int) -> None:
        """The student's first rank says after how many steps this launch begins."""
        self.store.set(_FIRST_STEP, str(step))

    def first_step(self) -> int:
        """What the student has told."""
        return int(self.store.get(_FIRST_STEP))

    def broken(self, error: Exception) -> RunError:
        """The error to raise when a message fails; by then the roll call has usually ended us."""
        time.sleep(VERDICT_S)
        return RunError(f"{self.seat.name}: the connection to the other side broke: {error}")

    def leave(self) -> None:
        """This rank is done."""
        if isinstance(self._watch, RollCall):
            self._watch.close()
            self._file.unlink(missing_ok=True)
        else:
            self._watch.leave()

    def fail(self, reason: str) -> None:
        """This rank fails; the others are told why."""
        name = self.seat.name
        self._watch.fail(
            f"{name} failed: {reason}" if isinstance(self._watch, RollCall) else reason
        )


@contextmanager
def joined(
    seat: Seat, logs: Path, backend: str, on_end: Callable[[], None] | None = None
) -> Iterator[Joint]:
    """Join the worlds for as long as the block runs; whatever ends it is told to the other side.

    All ranks of both worlds call this together.

    Args:
        seat: this rank's place.
        logs: the folder in which they meet.
        backend: gloo or nccl.
        on_end: for the teacher's ranks: called in another thread when the student is done.

    Raises: RunError if the other side does not come.
    """
    file = meeting_file(logs)
    if seat.index == 0:
        meeting, store, watch = _open(file)
    else:
        meeting, store, watch = _find(file, seat, on_end)
    try:
        group = _group(seat, store, backend, meeting.token)
        joint = Joint(seat, store, watch, group, file)
        yield joint
    except BaseException as error:
        if isinstance(watch, Presence) and watch.ended.wait(END_S):
            time.sleep(VERDICT_S)  # the others have left: `on_end` ends this process
        reason = str(error) or type(error).__name__
        first_line = reason.splitlines()[0]
        watch.fail(f"{seat.name} failed: {first_line}" if seat.index == 0 else first_line)
        raise
    joint.leave()


def _open(file: Path) -> tuple[Meeting, dist.Store, RollCall]:
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")  # rank 0 stands there
    store = dist.TCPStore(host, 0, is_master=True, timeout=_MEETING_LIMIT, wait_for_workers=False)
    roll = RollCall(host)
    meeting = Meeting(host, store.port, roll.port, roll.token)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(asdict(meeting)) + "\n")
    return meeting, store, roll


def _find(
    file: Path, seat: Seat, on_end: Callable[[], None] | None
) -> tuple[Meeting, dist.Store, Presence]:
    """Wait for the meeting; a file of an earlier launch names a place where nobody answers."""
    deadline = time.monotonic() + MEETING_LIMIT_S
    while time.monotonic() < deadline:
        if file.is_file():
            meeting = Meeting(**json.loads(file.read_text(encoding="utf-8")))
            try:
                watch = Presence(
                    meeting.host, meeting.roll_port, meeting.token, seat.name, on_end=on_end
                )
            except RunError:
                time.sleep(_POLL_S)
                continue
            store = dist.TCPStore(
                meeting.host, meeting.store_port, is_master=False, timeout=_MEETING_LIMIT
            )
            return meeting, store, watch
        time.sleep(_POLL_S)
    raise RunError(f"{seat.name}: {file} did not come up in {MEETING_LIMIT_S:.0f} s")


def _group(seat: Seat, store: dist.Store, backend: str, name: str) -> dist.ProcessGroup:
    """A group beside the default one, of ranks that the default group does not know.

    torch has no public call for it; an empty list of ranks means that none of them is the default
    group's. Tried with torch 2.13, gloo and NCCL's interface alike.
    """
    group, _ = distributed_c10d._new_process_group_helper(
        seat.students + seat.teachers,
        seat.index,
        [],
        backend,
        dist.PrefixStore("joint", store),
        group_name=distributed_c10d.GroupName(f"joint_{name}"),
        timeout=_MEETING_LIMIT,
    )
    assert isinstance(group, dist.ProcessGroup)
    return group


def backend_here() -> str:
    """NCCL between GPUs, gloo elsewhere."""
    return "nccl" if torch.cuda.is_available() else "gloo"
