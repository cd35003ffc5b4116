"""Who is still there: one connection from every rank to the student's first, open as long as it lives.

The kernel closes a process's connections however it ends, so a death is known at once and without
a poll. The student's first rank tells the others, and every rank that hears of a loss ends its
process with the cause, also from the middle of a collective that would wait for ever. A node
that loses power is noticed by keep-alive probes, within about ten seconds.

It carries lines of text of who came, left, failed or is missing, and nothing else.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from ekd_nemo.errors import EXIT_FAILURE, RunError

PROBE_AFTER_S, PROBE_EVERY_S, PROBES = 4, 2, 3
CONNECT_LIMIT_S = 30.0

Lost = Callable[[str], None]


def end_process(reason: str) -> None:
    """Say why and end, whatever the other threads do."""
    sys.stderr.write(f"error: {reason}\n")
    sys.stderr.flush()
    os._exit(EXIT_FAILURE)


@dataclass
class RollCall:
    """The student's first rank: takes the others' connections and tells everybody of a loss.

    Attributes:
        host: the address that others reach.
        token: the first line that a rank sends; others are turned away.
        lost: called once, with the reason.
    """

    host: str
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    lost: Lost = end_process

    def __post_init__(self) -> None:
        """Listen on a free port, at every address: a node may know its own name as a loopback address."""
        self._listener = socket.create_server(("", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._present: dict[socket.socket, str] = {}
        self._lock, self._over = threading.Lock(), False
        self._empty = threading.Condition(self._lock)
        threading.Thread(target=self._accept, name="roll call", daemon=True).start()

    def close(self, limit_s: float = 30.0) -> None:
        """Tell the others that the student is done, and wait until all of them have left."""
        with self._lock:
            self._over = True
            self._tell("end")
            self._empty.wait_for(lambda: not self._present, limit_s)
        with contextlib.suppress(OSError):  # wakes the thread that accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def fail(self, reason: str) -> None:
        """Tell the others that this rank fails, and why."""
        with self._lock:
            self._over = True
            self._tell(f"lost {reason}")

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the roll is over
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._hear, args=(connection,), daemon=True).start()

    def _hear(self, connection: socket.socket) -> None:
        with connection, connection.makefile("r", encoding="utf-8", errors="replace") as lines:
            _probe(connection)
            if _line(lines) != self.token:
                return
            name = _line(lines) or "a rank without a name"
            with self._lock:
                self._present[connection] = name
            said = _line(lines)
            with self._lock:
                self._present.pop(connection, None)
                self._empty.notify_all()
                if said == "bye" or self._over:
                    return
                self._over = True
                reason = _reason(name, said)
                self._tell(f"lost {reason}")
        self.lost(reason)

    def _tell(self, line: str) -> None:
        for connection in self._present:
            with contextlib.suppress(OSError):  # it is gone as well
                connection.sendall(f"{line}\n".encode())


class Presence:
    """Any other rank: answers the roll, and hears of losses and of the student's end.

    Attributes:
        ended: set when the student is done.
    """

    def __init__(
        self,
        host: str,
        port: int,
        token: str,
        name: str,
        lost: Lost = end_process,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """Connect as `name`.

        Args:
            host: of the roll call.
            port: of the roll call.
            token: of the roll call.
            name: by which others hear of this rank.
            lost: called with the reason when a rank is lost.
            on_end: called when the student is done; in a thread of its own, as `lost` is.

        Raises: RunError if nobody answers.
        """
        self.ended = threading.Event()
        self._lost, self._on_end, self._left = lost, on_end, False
        try:
            self._connection = socket.create_connection((host, port), timeout=CONNECT_LIMIT_S)
        except OSError as error:
            raise RunError(f"{name}: the student's first rank does not answer: {error}") from None
        self._connection.settimeout(None)
        _probe(self._connection)
        self._connection.sendall(f"{token}\n{name}\n".encode())
        threading.Thread(target=self._hear, name="presence", daemon=True).start()

    def leave(self) -> None:
        """This rank is done."""
        self._say("bye")

    def fail(self, reason: str) -> None:
        """This rank fails, for this reason."""
        self._say(f"fails: {reason}")

    def _say(self, line: str) -> None:
        self._left = True
        with contextlib.suppress(OSError):  # nobody is left to hear it
            self._connection.sendall(f"{line}\n".encode())
            self._connection.shutdown(socket.SHUT_WR)

    def _hear(self) -> None:
        with self._connection.makefile("r", encoding="utf-8", errors="replace") as lines:
            while (said := _line(lines)) == "end":
                self.ended.set()
                if self._on_end is not None and not self._left:
                    self._on_end()
        if self._left or (self.ended.is_set() and not said):
            return
        self._lost(said.removeprefix("lost ") if said else _reason("the student's rank 0", None))


def _line(lines: TextIO) -> str | None:
    """The next line; None when the connection has ended."""
    try:
        text = lines.readline()
    except OSError:
        return None
    return text.rstrip("\n") if text.endswith("\n") else None


def _reason(name: str, said: str | None) -> str:
    if said is not None and said.startswith("fails: "):
        return f"{name} failed: {said.removeprefix('fails: ')}"
    return f"{name} has gone without a word (killed, or its node is lost)"


def _probe(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
