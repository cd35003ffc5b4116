"""The process beside the ranks, or above one of them: what it does with Slurm's signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ekd_nemo.config.resolve import ResolvedRecipe
from ekd_nemo.launch import slurm_node
from ekd_nemo.launch.slurm_env import Task
from ekd_nemo.launch.slurm_node import NodeStep
from ekd_nemo.launch.slurm_text import LOGS
from ekd_nemo.records.clock import node_name
from ekd_nemo.records.rundir import RunDir

SAVES = """
import signal, sys, time
for each in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(each, lambda number, frame: sys.exit(100 + number))
print("ready", flush=True)
time.sleep(30)
"""


@pytest.fixture
def _handlers() -> Generator[None]:
    before = {each: signal.getsignal(each) for each in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def first_attempt(*_: Any) -> int:
    return 1


@contextmanager
def no_sampler(*_: Any, **__: Any) -> Generator[SimpleNamespace]:
    yield SimpleNamespace(identities=list[str], uuids=list[str])


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_rank_below_its_task_is_told_to_save(
    number: signal.Signals, tiny: ResolvedRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm with proctrack/cgroup signals the task alone, as this test does."""
    monkeypatch.setattr(slurm_node, "begin", first_attempt)
    monkeypatch.setattr(slurm_node, "sampler_of", no_sampler)
    for name in ("set_devices", "note_if_trained"):
        monkeypatch.setattr(slurm_node, name, first_attempt)
    task = Task("9-0", "0", 0, 0, 1, 1, (node_name(),), 0)
    children: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", SAVES], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        children.append(child)
        threading.Timer(0.5, os.kill, (os.getpid(), number)).start()
        return child

    try:
        node = NodeStep(RunDir(tmp_path / "run"), tiny.recipe, task, 1, 10.0)
        assert node(start) == 100 + number
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.usefixtures("_handlers")
def test_nodes_that_do_not_answer_are_waited_for_together(
    tiny: ResolvedRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three silent nodes take as long as one; what the fourth says counts."""
    monkeypatch.setattr(slurm_node, "ANSWER_S", 0.6)
    nodes = (node_name(), "silent-1", "silent-2", "silent-3")
    task = Task("9-0", "0", 0, 0, 4, 1, nodes, 0)
    run = RunDir(tmp_path / "run")
    (run.path / LOGS).mkdir(parents=True)
    step = NodeStep(run, tiny.recipe, task, 4, 10.0)
    began_s = time.monotonic()
    found = {each.rank: each.state for each in step._culprits(1)}
    assert time.monotonic() - began_s < 1.5
    assert found == {0: "not started", 1: "unknown", 2: "unknown", 3: "unknown"}
