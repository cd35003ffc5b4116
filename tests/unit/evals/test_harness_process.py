"""Listening to the worker process; a shell script speaks in its place."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ekd_nemo.errors import RunError, UserError
from ekd_nemo.evals.harness_process import Event, harness_version, run_harness

Script = Callable[[str], None]


@pytest.fixture
def worker(tmp_path: Path) -> Script:
    def write(body: str) -> None:
        script = tmp_path / "worker"
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)

    return write


def listen(tmp_path: Path, offline: Path | None = None) -> list[Event]:
    heard: list[Event] = []
    run_harness(
        [str(tmp_path / "worker"), "eval"],
        tmp_path / "request.json",
        tmp_path / "logs" / "lm.log",
        heard.append,
        offline=offline,
    )
    return heard


def test_events_are_handed_on_and_the_rest_is_logged(tmp_path: Path, worker: Script) -> None:
    worker("""echo '{"event": "task", "task": "a"}'; echo noise >&2; echo "$@" >&2""")
    assert listen(tmp_path) == [{"event": "task", "task": "a"}]
    log = (tmp_path / "logs" / "lm.log").read_text()
    assert log == f"noise\neval {tmp_path}/request.json\n"


def test_no_hub_is_asked_when_offline(
    tmp_path: Path, worker: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    worker("""echo "{\\"event\\": \\"hub $HF_HUB_OFFLINE $HF_DATASETS_CACHE\\"}" """)
    assert listen(tmp_path, Path("cache"))[0]["event"] == "hub 1 cache"
    assert listen(tmp_path)[0]["event"] == "hub  "


@pytest.mark.parametrize(("code", "kind"), [(1, RunError), (2, UserError)])
def test_an_error_event_keeps_its_kind(
    tmp_path: Path, worker: Script, code: int, kind: type
) -> None:
    worker(
        f"""echo '{{"event": "error", "message": "what is wrong", "exit_code": {code}}}'; exit {code}"""
    )
    with pytest.raises(kind, match="^what is wrong"):
        listen(tmp_path)


def test_a_death_without_a_word_is_told_with_the_last_line(tmp_path: Path, worker: Script) -> None:
    worker("echo 'MemoryError: no more' >&2; kill -9 $$")
    with pytest.raises(
        RunError, match=r"ended with code -9: MemoryError: no more; its log is .*lm\.log"
    ):
        listen(tmp_path)


def test_the_worker_ends_when_the_listener_fails(tmp_path: Path, worker: Script) -> None:
    worker("""echo "{\\"event\\": \\"$$\\"}"; exec sleep 100""")

    def refuse(event: Event) -> None:
        raise RunError("no space")

    began = time.monotonic()
    with pytest.raises(RunError, match="no space"):
        run_harness(
            [str(tmp_path / "worker")], tmp_path / "r", tmp_path / "log", refuse, offline=None
        )
    assert time.monotonic() - began < 50


def test_the_version_is_that_of_the_package() -> None:
    assert harness_version() == "0.4.13"
