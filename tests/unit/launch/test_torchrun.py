"""Ranks under torchrun: their exit codes and their saving, as `torch.distributed.run` is installed."""

import signal
from pathlib import Path

import pytest

from ekd_nemo.launch.failure import reason
from ekd_nemo.launch.plan import Step, ranks_argv
from tests.unit.launch.test_processes import run

pytest.importorskip("torch", reason="torchrun comes with torch")

RANKS = """
import os, signal, sys, time
from pathlib import Path
rank = os.environ["RANK"]
assert sys.argv[3:] == ["--run", "a b"], sys.argv
def save(number, frame):
    time.sleep(0.5)
    Path(sys.argv[1], f"saved-{rank}").touch()
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
if sys.argv[2] == "wait":  # torchrun sends this to the others when one rank has ended
    signal.signal(signal.SIGTERM, lambda *_: None)
if sys.argv[2] == "fail" and rank == "1":
    sys.stderr.write("error: rank 1 does not like this\\n")
    sys.exit(2)
Path(sys.argv[1], f"there-{rank}").touch()
while len(list(Path(sys.argv[1]).glob("there-*"))) < 2:
    time.sleep(0.02)
if rank == "0" and sys.argv[2] == "wait":
    Path(sys.argv[1], "there").touch()
time.sleep(20)
"""


def ranks(tmp_path: Path, how: str) -> Step:
    (tmp_path / "ranks_of_a_test.py").write_text(RANKS)
    argv = ranks_argv(("ranks_of_a_test", str(tmp_path), how, "--run", "a b"), 2)
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)}
    return Step("train", "", argv, env=environment, ranks=2)


def test_a_stop_signal_reaches_every_rank(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks(tmp_path, "wait"), signal.SIGUSR1)
    assert ended.code == 75
    assert {path.name for path in tmp_path.glob("saved-*")} == {"saved-0", "saved-1"}


def test_the_failing_rank_gives_the_code_and_the_line(tmp_path: Path) -> None:
    ended = run(tmp_path, ranks(tmp_path, "fail"))
    assert ended.code == 2
    assert reason(ended.code, ended.text) == "rank 1 does not like this"
