"""`ekd`: the root command, and how errors become one line and an exit code."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

import ekd_nemo
from ekd_nemo.cli.lazy import LazyGroup
from ekd_nemo.errors import EXIT_FAILURE, EXIT_OK, EXIT_USER, EkdError

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
DEBUG_VARIABLE = "EKD_DEBUG"

app = typer.Typer(cls=LazyGroup, name="ekd", no_args_is_help=True, rich_markup_mode=None)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ekd {ekd_nemo.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    """Energy-accounted knowledge distillation on NVIDIA NeMo and Megatron-Core."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: what follows `ekd`; None takes it from `sys.argv`.
    Returns: the exit code: 0, 1 for failures, 2 for the user's mistakes, 130 when interrupted.
    """
    words, debug = _take_debug(list(sys.argv[1:] if argv is None else argv))
    try:
        code = app(args=words, prog_name="ekd", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except EkdError as error:
        return _fail(_debugged(str(error), debug), error.exit_code)
    except Exception as error:
        return _report(error, debug)
    return code if isinstance(code, int) else EXIT_OK


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """Take `--debug` out of the words before `--`, and tell the processes that are started."""
    end = words.index("--") if "--" in words else len(words)
    if "--debug" in words[:end]:
        os.environ[DEBUG_VARIABLE] = "1"
        words = [word for word in words[:end] if word != "--debug"] + words[end:]
    return words, os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")


def _report(error: Exception, debug: bool) -> int:
    """Report an exception that is not ours: wrong usage, an abort at a prompt, or a defect."""
    kinds = {
        kind.__name__ for kind in type(error).__mro__
    }  # Typer carries its own copy of click: names, not classes
    if "NoArgsIsHelpError" in kinds:
        typer.echo(str(error), err=True)
        return EXIT_USER
    if "ClickException" in kinds:
        return _fail(str(getattr(error, "format_message", error.__str__)()), EXIT_USER)
    if "Abort" in kinds:
        return _fail("interrupted", EXIT_INTERRUPTED)
    hint = "" if debug else " (a defect; --debug shows where)"
    return _fail(_debugged(f"{type(error).__name__}: {error}", debug) + hint, EXIT_FAILURE)


def _debugged(message: str, debug: bool) -> str:
    if debug:
        traceback.print_exc()
    return message


def _fail(message: str, code: int) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
