"""The root command: errors as one line, exit codes, and groups imported on demand."""

import subprocess
import sys
from pathlib import Path

import pytest

import ekd_nemo
from ekd_nemo.cli import app as app_module
from ekd_nemo.cli.app import main
from ekd_nemo.cli.lazy import GROUPS
from ekd_nemo.errors import RunError, UserError


@pytest.fixture(autouse=True)
def no_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EKD_DEBUG", "0")


def test_help_lists_every_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in GROUPS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ekd {ekd_nemo.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["recipes"], "error: recipes is not a command; accepted: recipe, data, "),
        (["recipe", "lisst"], "error: No such command 'lisst'."),
        (["recipe", "show"], "error: Missing argument 'name'."),
        (["recipe", "show", "none"], "error: recipe none is not known; accepted: "),
        (["recipe", "launch", "smoke_sft"], "error: launch needs --local"),
        (
            ["recipe", "launch", "smoke_sft", "--local", "--nproc", "x"],
            "error: Invalid value for '--nproc'",
        ),
        (["--nonsense"], "error: No such option: --nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_bare_group_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe"]) == 2
    assert "launch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("x.yaml:1: wrong"), 2, "error: x.yaml:1: wrong\n"),
        (RunError("training\n failed"), 1, "error: training failed\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (
            ZeroDivisionError("by 0"),
            1,
            "error: ZeroDivisionError: by 0 (a defect; --debug shows where)\n",
        ),
    ],
)
def test_errors_become_a_line_and_a_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(app_module, "app", fail)
    assert main([]) == code
    assert capsys.readouterr().err == line


def test_debug_shows_the_traceback_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "show", "none", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("\n")
    assert "error: recipe none is not known" in err.splitlines()[-1]


def test_a_closed_pipe_is_no_defect() -> None:
    command = f"{sys.executable} -m ekd_nemo recipe list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode in (0, 1, 141)  # Typer itself ends with 1 when it meets the pipe


LARGE = {"pydantic", "numpy", "pyarrow", "yaml", "psutil", "rich", "torch"}


def imported_for_help(*argv: str) -> set[str]:
    code = (
        "import sys; from ekd_nemo.cli.app import main; main(sys.argv[1:]);"
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *argv, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_help_imports_no_group() -> None:
    modules = imported_for_help()
    own = {name for name in modules if name.startswith("ekd_nemo.")}
    assert own == {"ekd_nemo.cli", "ekd_nemo.cli.lazy", "ekd_nemo.errors", "ekd_nemo.cli.app"}
    assert not modules & LARGE


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_help_of_a_group_imports_nothing_large(group: str) -> None:
    assert not imported_for_help(group) & LARGE


def test_every_group_of_the_table_exists() -> None:
    folder = Path(app_module.__file__).parent
    for _, target in GROUPS.values():
        module = target.partition(":")[0]
        assert (folder / f"{module.rpartition('.')[2]}.py").is_file(), module
