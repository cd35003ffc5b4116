"""The worker process that runs the harness: started, listened to, and stopped with us."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import IO, Any

from ekd_nemo.errors import EXIT_USER, EkdError, MissingExtraError, RunError, UserError

Event = Mapping[str, Any]
_GRACE_S = 10


def harness_version() -> str:
    """The installed lm-eval's version, without importing it.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return metadata.version("lm-eval")
    except metadata.PackageNotFoundError:
        raise MissingExtraError("ekd eval lm", "eval") from None


def run_harness(
    argv: Sequence[str],
    request: Path,
    log: Path,
    on_event: Callable[[Event], None],
    *,
    offline: Path | None,
) -> None:
    """Run a harness on a request file until it ends.

    Args:
        argv: the command, without the request.
        request: what to do; see `ekd_nemo.evals.request`.
        log: the harness's own output is appended here.
        on_event: called with each `model`, `task` and `done` event, in this process.
        offline: no hub is asked, and data sets are cached in this folder; None: the hub and its caches are used.

    Raises:
        UserError: what the worker found wrong with the request.
        RunError: what stopped the worker, and where its log is.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as err, _stopped_with_us() as adopt:
        process = subprocess.Popen(
            [*argv, str(request)],
            stdout=subprocess.PIPE,
            stderr=err,
            env=_environment(offline),
            text=True,
        )
        adopt(process)
        assert process.stdout is not None
        failure = _listen(process.stdout, on_event)
        code = process.wait()
    if failure is not None:
        raise _error(failure, log)
    if code != 0:
        raise RunError(f"the harness ended with code {code}{_last_line(log)}; its log is {log}")


def _listen(stream: IO[str], on_event: Callable[[Event], None]) -> Event | None:
    """Hand on every event; the `error` event, if one came."""
    failure: Event | None = None
    for line in stream:
        event = json.loads(line)
        if event["event"] == "error":
            failure = event
        else:
            on_event(event)
    return failure


def _error(event: Event, log: Path) -> EkdError:
    if event["exit_code"] == EXIT_USER:
        return UserError(event["message"])
    return RunError(f"{event['message']}; the log is {log}")


def _last_line(log: Path) -> str:
    lines = log.read_bytes()[-4000:].decode("utf-8", "replace").split("\n")
    told = [line.strip() for line in lines if line.strip()]
    return f": {told[-1][-300:]}" if told else ""


def _environment(offline: Path | None) -> dict[str, str]:
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    if offline is not None:
        env |= {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(offline),
        }
    return env


@contextmanager
def _stopped_with_us() -> Generator[Callable[[subprocess.Popen[str]], None], None, None]:
    """End the adopted process when this one is interrupted, asked to stop, or leaves by an exception."""
    adopted: list[subprocess.Popen[str]] = []

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield adopted.append
    finally:
        for process in adopted:
            _end(process)
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
