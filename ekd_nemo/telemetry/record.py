"""Records the energy of any command into a run directory."""

import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from ekd_nemo.errors import EkdError, UserError
from ekd_nemo.records.capture import capture_attempt, safe_argv
from ekd_nemo.records.identity import RunIdentity, begin_attempt, read_identity, set_devices
from ekd_nemo.records.phases import Phase
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.marks import Marks
from ekd_nemo.telemetry.process import Sampler
from ekd_nemo.telemetry.settings import SamplerSettings

METHOD: Final = "command"
FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def command_hash(command: Sequence[str]) -> str:
    """Twelve hex digits of the command line: repeats of one command share it."""
    return hashlib.sha256("\0".join(command).encode()).hexdigest()[:12]


def default_run_id(command: Sequence[str]) -> str:
    """The program's name, the command's hash and the time: each recording is a run of its own."""
    program = "".join(c if c.isalnum() else "_" for c in Path(command[0]).name)
    return f"{program}-{command_hash(command)[:8]}-{time.strftime('%Y%m%dT%H%M%S')}"


def record_command(
    run: RunDir, command: Sequence[str], settings: SamplerSettings, phase: Phase
) -> int:
    """Run `command` with a sampler beside it and one phase mark around it.

    Args:
        run: where to record; may hold an earlier recording of the same command, which is continued.
        command: argv; started on this terminal, its environment with EKD_RUN_DIR and EKD_DEVICE_UUIDS.
        settings: how to sample.
        phase: what the whole command counts as.
    Returns: the command's exit code; 128 plus the signal's number if one ended it.
    Raises: UserError if the command cannot be started, the sampler refuses, or `run` holds another
        experiment; RunError if the sampler fails.
    """
    identity = RunIdentity(
        run_id=run.run_id,
        recipe=f"command {Path(command[0]).name}",
        recipe_hash=command_hash(safe_argv(command)),
        method=METHOD,
    )
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]}: no such command")
    if run.run_json.exists():
        read_identity(run).check_same(identity, run.run_json)
    fresh = not run.path.exists()
    sampler = Sampler(run, settings)
    try:
        sampler.start()
    except EkdError:
        if fresh:
            shutil.rmtree(run.path, ignore_errors=True)  # nothing left half made
        raise
    try:
        attempt = begin_attempt(run, identity, capture_attempt()).attempts[-1].attempt
        set_devices(run, sampler.identities())
        uuids = sampler.uuids() or sampler.uuids("host")
        environment = {
            **os.environ,
            "EKD_RUN_DIR": str(run.path.absolute()),
            "EKD_DEVICE_UUIDS": ",".join(uuids),
        }
        parallel = {"tensor": 0, "pipeline": 0, "data": 0}
        marks = Marks(run.marks(0), rank=0, uuids=uuids, parallel=parallel, attempt=attempt)
        with marks, marks.phase(phase):
            return _wait(command, environment)
    finally:
        sampler.stop()


def _wait(command: Sequence[str], environment: dict[str, str]) -> int:
    try:
        child = subprocess.Popen(list(command), env=environment)
    except OSError as error:
        raise UserError(f"{command[0]}: cannot be started: {error.strerror}") from None
    with _forwarding(child):
        code = child.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Generator[None]:
    """Hand signals on to the child; Ctrl-C reaches it by itself, so here it is only not obeyed."""

    def forward(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda _number, _frame: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
