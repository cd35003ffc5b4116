"""Tables, extras and the worker's exit code."""

import sys

import pytest
import typer

from ekd_nemo.cli import common
from ekd_nemo.errors import MissingExtraError


def test_table_aligns_columns() -> None:
    assert common.table([("A", "B"), ("long", "x"), ("s", "")]) == "A     B\nlong  x\ns"


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(
        MissingExtraError,
        match=r"ekd data needs the extra 'train': pip install 'ekd-nemo\[train\]'",
    ):
        common.require_extra("ekd data", "train", "no_such_module")


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("raise SystemExit(2)", 2), ("import os; os.kill(os.getpid(), 15)", 143)],
)
def test_the_workers_code_is_ours(
    code: str, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(argv: list[str], check: bool) -> object:
        ran.append(argv)
        return real([sys.executable, "-c", code], check=check)

    real = common.subprocess.run
    monkeypatch.setattr(common.subprocess, "run", run)
    with pytest.raises(typer.Exit) as caught:
        common.run_worker(["data", "build"])
    assert caught.value.exit_code == exit_code
    assert ran == [[sys.executable, "-m", "ekd_nemo.worker", "data", "build"]]
