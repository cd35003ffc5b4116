"""One process of a launch: started as the head of its own group, told to stop, and never left behind.

Linux only: a child is asked to stop (SIGTERM) by the kernel when the launcher dies, however it dies.
"""

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ekd_nemo.launch.failure import rank_exit_code, text_since
from ekd_nemo.launch.plan import Step
from ekd_nemo.launch.signals import StopWatch

POLL_S = 0.1
CENSUS_S = 1.0  # how often descendants are looked up: torchrun's ranks are sessions of their own
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Ended:
    """How a process ended: the exit code (of the rank that failed first) and what it wrote to stderr."""

    code: int
    text: str
    duration_s: float


def run_process(
    step: Step,
    log: Path,
    watch: StopWatch,
    environment: Mapping[str, str],
    keep_open: Sequence[int] = (),
) -> Ended:
    """Run a step to its end; stdout is the launcher's, stderr goes to `log`.

    A first stop signal is handed to the training ranks, which save, or to the step's process group; a second one kills.

    Args:
        step: what to run.
        log: appended to.
        watch: the signals received.
        environment: variables beside those of the launcher and the step.
        keep_open: descriptors that the process inherits.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began_s = time.monotonic()
    with log.open("ab") as stderr:
        stderr.write(f"--- {step.command()}\n".encode())
        stderr.flush()
        offset = stderr.tell()
        process = subprocess.Popen(
            step.argv,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **environment, **step.env},
            pass_fds=tuple(keep_open),
            start_new_session=True,
            preexec_fn=_stop_with_parent,  # noqa: PLW1509 - the launcher has one thread
        )
    supervise(process, step.ranks, watch)
    text = text_since(log, offset)
    return Ended(rank_exit_code(process.returncode, text), text, time.monotonic() - began_s)


def _stop_with_parent() -> None:
    """In the child, before exec: SIGTERM when the launcher's thread ends, also by SIGKILL."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def supervise(process: subprocess.Popen[bytes], ranks: int, watch: StopWatch) -> None:
    """Wait for a process, hand on stop signals, and end whatever it leaves behind."""
    family: set[psutil.Process] = set()
    next_census_s, asked = time.monotonic(), False
    try:
        while process.poll() is None:
            if time.monotonic() >= next_census_s:
                family |= _descendants(process.pid)
                next_census_s = time.monotonic() + CENSUS_S
            for received in watch.take():
                family |= _descendants(process.pid)
                if asked:
                    _kill(process, family)
                else:
                    _ask_to_stop(process, ranks, received)
                asked = True
            time.sleep(POLL_S)
    finally:
        _kill(process, family | _descendants(process.pid))
        process.wait()


def _descendants(pid: int) -> set[psutil.Process]:
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _ask_to_stop(process: subprocess.Popen[bytes], ranks: int, received: signal.Signals) -> None:
    """Pass a signal on; Ctrl-C becomes SIGTERM, which the worker takes as a wish to save and end."""
    passed = signal.SIGTERM if received is signal.SIGINT else received
    if ranks == 0:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    elif ranks == 1:
        process.send_signal(passed)
    else:
        _signal_ranks(process, passed)


def _signal_ranks(process: subprocess.Popen[bytes], passed: signal.Signals) -> None:
    """Signal the children of torchrun; torchrun itself only while it has none."""
    try:
        children = psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.send_signal(passed)
    if not children:
        process.terminate()


def _kill(process: subprocess.Popen[bytes], family: set[psutil.Process]) -> None:
    """End the process, its group and its known descendants at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
