"""Processes of a launch: real ones, stopped, killed and never left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ekd_nemo.launch.plan import Step
from ekd_nemo.launch.processes import Ended, run_process
from ekd_nemo.launch.signals import StopWatch

SAVES = """
import signal, sys, time
def save(number, frame):
    print(signal.Signals(number).name, file=sys.stderr, flush=True)
    time.sleep(0.3)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGUSR1, save)
open(sys.argv[1], "w").close()
time.sleep(60)
"""
STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").close()
time.sleep(60)
"""
LEAVES_A_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(2.5)
"""


def step(code: str, *words: str, ranks: int = 0) -> Step:
    return Step("train", "training", (sys.executable, "-c", code, *words), ranks=ranks)


def signal_when_there(path: Path, *numbers: signal.Signals) -> threading.Thread:
    """Send signals to this process, a second apart, once a file is there."""

    def send() -> None:
        while not path.exists():
            time.sleep(0.02)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(1)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def run(tmp_path: Path, this: Step, *numbers: signal.Signals) -> Ended:
    thread = signal_when_there(tmp_path / "there", *numbers) if numbers else None
    with StopWatch() as watch:
        ended = run_process(this, tmp_path / "step.log", watch, {"EKD_ATTEMPT": "3"})
        assert watch.first == (numbers[0] if numbers else None)
        if thread:
            thread.join()
    return ended


def test_stderr_goes_to_the_log_and_environment_is_passed(tmp_path: Path) -> None:
    code = "import os, sys; sys.stderr.write('attempt ' + os.environ['EKD_ATTEMPT']); sys.exit(4)"
    ended = run(tmp_path, step(code))
    assert (ended.code, ended.text) == (4, "attempt 3")
    assert (tmp_path / "step.log").read_text().startswith(f"--- {sys.executable} -c ")
    again = run(tmp_path, step("pass"))
    assert (again.code, again.text) == (0, "")


@pytest.mark.parametrize(
    ("sent", "heard"),
    [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGTERM"), ("SIGUSR1", "SIGUSR1")],
)
def test_a_rank_is_asked_to_save_and_waited_for(tmp_path: Path, sent: str, heard: str) -> None:
    there = tmp_path / "there"
    ended = run(tmp_path, step(SAVES, str(there), ranks=1), signal.Signals[sent])
    assert ended.code == 75
    assert ended.text.strip() == heard


def test_a_step_without_ranks_is_terminated(tmp_path: Path) -> None:
    there = tmp_path / "there"
    code = "import sys, time; open(sys.argv[1], 'w'); time.sleep(60)"
    assert run(tmp_path, step(code, str(there)), signal.SIGUSR1).code == -signal.SIGTERM


def test_a_second_signal_kills(tmp_path: Path) -> None:
    there = tmp_path / "there"
    ended = run(tmp_path, step(STUBBORN, str(there), ranks=1), signal.SIGINT, signal.SIGINT)
    assert ended.code == -signal.SIGKILL
    assert ended.duration_s < 30


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert run(tmp_path, step(LEAVES_A_CHILD, str(there))).code == 0
    child = int(there.read_text())
    deadline_s = time.monotonic() + 5
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s, "a grandchild outlived its step"
        time.sleep(0.05)


LAUNCHER = """
import sys
from pathlib import Path
from ekd_nemo.launch.plan import Step
from ekd_nemo.launch.processes import run_process
from ekd_nemo.launch.signals import StopWatch
code, there, log = sys.argv[1:]
with StopWatch() as watch:
    step = Step("train", "", (sys.executable, "-c", code, there), ranks=1)
    run_process(step, Path(log), watch, {})
"""


def test_a_killed_launcher_lets_its_rank_save(tmp_path: Path) -> None:
    there, log = tmp_path / "there", tmp_path / "step.log"
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, SAVES, str(there), str(log)])
    deadline_s = time.monotonic() + 20
    while not there.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    launcher.kill()
    launcher.wait()
    while "SIGTERM" not in log.read_text().splitlines():
        assert time.monotonic() < deadline_s, "the rank was not asked to stop"
        time.sleep(0.05)
