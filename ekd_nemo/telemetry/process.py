"""Starts and stops this node's sampler for a launcher."""

import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydantic import BaseModel, ValidationError

from ekd_nemo.errors import EXIT_OK, EXIT_USER, EkdError, RunError, UserError
from ekd_nemo.records.clock import node_name
from ekd_nemo.records.identity import DeviceIdentity
from ekd_nemo.records.lines import Role
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.settings import SamplerSettings

READY_TIMEOUT_S: Final = 60.0
EXIT_TIMEOUT_S: Final = 2.0
STOP_TIMEOUT_S: Final = 30.0
LOG_TAIL_CHARS: Final = 2000

log = logging.getLogger(__name__)


class SampledDevice(DeviceIdentity):
    """A device of the running sampler, with the role that it has for `E_run`."""

    role: Role


class Ready(BaseModel):
    """What a sampler says of itself once its first samples are in the file."""

    sampler: str
    pid: int
    node: str
    why: str
    devices: tuple[SampledDevice, ...]


class Sampler:
    """The sampler of this node, around a block: `with Sampler(run, settings) as sampler: ...`.

    The process is detached from the terminal: Ctrl-C and a killed process group do not reach it; it
    follows this process: when this one and all ranks that wrote marks are gone, it ends by itself.

    Args:
        run: the run directory; the folder is made.
        settings: how to sample; this process is added to those followed.

    Attributes:
        ready: what it measures, once started.
    """

    def __init__(self, run: RunDir, settings: SamplerSettings | None = None) -> None:
        """Nothing is started yet."""
        self._run = run
        self._settings = settings or SamplerSettings()
        self._process: subprocess.Popen[bytes] | None = None
        self.ready: Ready | None = None

    def start(self) -> Ready:
        """Start it and wait until its first samples are written.

        Raises: UserError if it refuses (a device with another owner, a meter that is not there);
            RunError if it fails or is not ready within a minute.
        """
        node = self._settings.meters.node or node_name()
        self._run.logs.mkdir(parents=True, exist_ok=True)
        log_path = self._run.logs / f"sampler-{node}.log"
        with log_path.open("ab") as log_file:
            begin = log_file.tell()
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
            )
        text = _first_line(self._process)
        try:
            self.ready = Ready.model_validate_json(text)
        except ValidationError:
            raise self._refusal(log_path, begin) from None
        return self.ready

    def _refusal(self, log_path: Path, begin: int) -> EkdError:
        """Why it did not become ready, from what it said in its log; it is ended if it still runs."""
        assert self._process is not None
        process, self._process = self._process, None
        try:
            code = process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return RunError(f"the sampler was not ready within {READY_TIMEOUT_S:.0f} s")
        said = log_path.read_bytes()[begin:].decode(errors="replace").strip()
        reason = said[-LOG_TAIL_CHARS:].removeprefix("error: ") or f"exit code {code}"
        kind = UserError if code == EXIT_USER else RunError
        return kind(f"the sampler did not start: {reason}")

    def command(self) -> list[str]:
        """The argv that starts it."""
        argv = [sys.executable, "-P", "-m", "ekd_nemo.telemetry.sampler"]
        argv += ["--run", str(self._run.path.absolute()), *self._settings.argv()]
        return [*argv, "--until-pid", str(os.getpid())]

    def uuids(self, role: Role = "accelerator") -> list[str]:
        """The devices that it measures in this role; empty before `start`."""
        return [d.uuid for d in self.ready.devices if d.role == role] if self.ready else []

    def identities(self) -> list[DeviceIdentity]:
        """The devices for run.json."""
        return list(self.ready.devices) if self.ready else []

    def stop(self) -> int:
        """Ask it to end and wait; returns its exit code, and logs it if that is not 0."""
        if self._process is None:
            return EXIT_OK
        process, self._process = self._process, None
        if process.poll() is None:
            ignores = self._settings.ignores_sigterm
            process.send_signal(signal.SIGUSR2 if ignores else signal.SIGTERM)
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code != EXIT_OK:
            log.error("the sampler ended with exit code %d; see %s", code, self._run.logs)
        return code

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    """The first line on its stdout; what there is of it when it ends or a minute has passed."""
    assert process.stdout is not None
    text, deadline_s = b"", time.monotonic() + READY_TIMEOUT_S
    with selectors.DefaultSelector() as selector, process.stdout as pipe:
        selector.register(pipe, selectors.EVENT_READ)
        while not text.endswith(b"\n") and (rest_s := deadline_s - time.monotonic()) > 0:
            if selector.select(rest_s):
                chunk = os.read(pipe.fileno(), 65536)
                if not chunk:
                    break
                text += chunk
    return text
