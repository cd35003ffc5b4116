"""One sampler per run and node, one owner per device: sockets with names that only one can hold."""

import errno
import os
import socket
import struct
import time
from pathlib import Path
from typing import Final, NamedTuple

from ekd_nemo.errors import UserError
from ekd_nemo.telemetry.address import marks_address, owner_address

REPLACE: Final = b"replace"
REPLACE_TIMEOUT_S: Final = 10.0
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid, written by the kernel
_DATAGRAM_BYTES: Final = 64


class Message(NamedTuple):
    """A datagram and who sent it, as the kernel says; pid 0 is outside this pid namespace."""

    body: bytes
    pid: int
    uid: int


def _bind(address: str) -> socket.socket | None:
    """A datagram socket that holds this name; None if another process does."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        held.bind(address)
    except OSError as error:
        held.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    held.setblocking(False)
    return held


def own_device(uuid: str) -> socket.socket | None:
    """Become the owner of a device, until the socket is closed; None if another sampler is."""
    return _bind(owner_address(uuid))


def listen_for_marks(telemetry: Path, node: str) -> socket.socket:
    """The socket on which this run's marks arrive on this node.

    A sampler of the same run that a killed launch left behind is asked to end first.
    Raises: UserError if it does not within ten seconds.
    """
    address = marks_address(telemetry, node)
    give_up_s = time.monotonic() + REPLACE_TIMEOUT_S
    asked = False
    while (held := _bind(address)) is None:
        if not asked:
            asked = _ask_to_end(address)
        if time.monotonic() > give_up_s:
            raise UserError(f"{telemetry.parent}: this run is already being sampled on {node}")
        time.sleep(0.05)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return held


def _ask_to_end(address: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
        try:
            speaker.sendto(REPLACE, address)
        except ConnectionRefusedError:
            return False  # it has just ended
    return True


def receive(marks: socket.socket) -> Message | None:
    """The next datagram; None if there is none."""
    try:
        body, ancillary, _, _ = marks.recvmsg(_DATAGRAM_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
    except BlockingIOError:
        return None
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid, uid, _ = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
            return Message(body, pid, uid)
    return Message(body, 0, -1)


def may_command(message: Message) -> bool:
    """Whether the sender may end this sampler: the same user, or root."""
    return message.uid in (os.getuid(), 0)
