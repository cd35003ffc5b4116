"""The sampler beside a launch: started before the first step of a run, stopped after the last."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ekd_nemo.config.recipe import Energy
from ekd_nemo.errors import RunError, UserError
from ekd_nemo.launch.failure import reason, text_since
from ekd_nemo.launch.plan import sampler_argv
from ekd_nemo.records.identity import DeviceIdentity, set_devices
from ekd_nemo.records.rundir import RunDir

STOP_TIMEOUT_S = 15.0


@contextmanager
def sampling(run: RunDir, energy: Energy) -> Iterator[tuple[str, ...]]:
    """Keep a sampler running around a block, and note its devices in run.json.

    Should the launcher be killed, the sampler ends by itself once the ranks are gone as well.

    Yields: the ids of the accelerators that it measures.
    Raises: UserError or RunError with what the sampler said if it does not start.
    """
    log = run.logs / "sampler.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stderr:
        offset = stderr.tell()
        process = subprocess.Popen(
            (*sampler_argv(run, energy), f"--until-pid={os.getpid()}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is the launcher's to handle
        )
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        if not ready:
            raise _failure(process.wait(), text_since(log, offset))
        devices: list[dict[str, Any]] = json.loads(ready)["devices"]
        set_devices(run, [DeviceIdentity.model_validate(device) for device in devices])
        yield tuple(device["uuid"] for device in devices if device["role"] == "accelerator")
    finally:
        _stop(process)


def _failure(code: int, text: str) -> UserError | RunError:
    message = f"the sampler of the energy meters has not started: {reason(code, text)}"
    return UserError(message) if code == UserError.exit_code else RunError(message)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the sampler to write its last lines and end; a hung driver is not waited for."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
