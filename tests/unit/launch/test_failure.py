"""One line out of what a failed process wrote."""

from pathlib import Path

import pytest

from ekd_nemo.launch.failure import rank_exit_code, reason, text_since

TORCHRUN = """\
error: {first}
E1121 19:48:26 12275 api.py:1002] failed (exitcode: {code}) local_rank: 1 (pid: 12306) of binary: /usr/bin/python
Traceback (most recent call last):
  File "run.py", line 1032, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""
TRACEBACK = """\
x.py:3: FutureWarning: The pynvml package is deprecated.
Traceback (most recent call last):
  File "x.py", line 3, in <module>
RuntimeError: shapes differ: 3 and 4
E1121 19:48:26 12275 api.py:1002] failed (exitcode: 1) local_rank: 0 (pid: 12306)
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (2, TORCHRUN.format(first="a.jsonl:3: not JSON", code=2), "a.jsonl:3: not JSON"),
        (1, TRACEBACK, "RuntimeError: shapes differ: 3 and 4"),
        (1, "KeyboardInterrupt\n", "KeyboardInterrupt"),
        (-9, "", "killed by SIGKILL (out of memory?)"),
        (-11, "noise\n", "killed by SIGSEGV"),
        (3, "noise\n", "exit code 3"),
    ],
)
def test_reason(code: int, text: str, expected: str) -> None:
    assert reason(code, text) == expected


def test_the_ranks_code_lies_behind_torchruns() -> None:
    assert rank_exit_code(1, TORCHRUN.format(first="x", code=75)) == 75
    assert rank_exit_code(1, TORCHRUN.format(first="x", code=-9)) == -9
    assert rank_exit_code(0, TORCHRUN.format(first="x", code=75)) == 0
    assert rank_exit_code(3, "no torchrun here") == 3


def test_only_the_new_part_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("error: of yesterday\n")
    offset = log.stat().st_size
    with log.open("a") as file:
        file.write("error: of today\n")
    assert text_since(log, offset) == "error: of today\n"
    log.write_bytes(b"x" * 300_000 + b"end")
    assert len(text_since(log, 0)) == 1 << 18
    assert text_since(log, 0).endswith("end")
