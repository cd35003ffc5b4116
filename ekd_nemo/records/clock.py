"""Where and when a record was made: node, boot, monotonic time, wall time."""

import os
import re
import socket
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STAT = Path("/proc/stat")


class Instant(NamedTuple):
    """One moment: CLOCK_MONOTONIC, and the wall clock as a label."""

    mono_ns: int
    wall_ns: int


def now() -> Instant:
    """This moment on both clocks."""
    return Instant(time.monotonic_ns(), time.time_ns())


@cache
def boot_id() -> str:
    """First twelve digits of the kernel's boot id; new after each boot.

    Kernels that keep none (some sandboxes) are told apart by their time of boot: `t` and its second.
    Raises: OSError where there is no Linux `/proc`.
    """
    if _BOOT_ID.exists():
        return _BOOT_ID.read_text().strip().replace("-", "")[:12]
    (line,) = (x for x in _STAT.read_text().splitlines() if x.startswith("btime "))
    return f"t{line.split()[1]}"


@cache
def node_name() -> str:
    """Slurm's name of this node, else the host name without its domain; safe in a file's name."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname().split(".")[0]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "localhost"
