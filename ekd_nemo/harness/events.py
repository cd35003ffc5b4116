"""What the harness processes share: events on standard output, and one line for whatever a library raises."""

import json
import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from ekd_nemo.errors import EkdError, RunError

_LOG = logging.getLogger(__name__)
Emit = Callable[..., None]
T = TypeVar("T")


def own_stdout() -> Emit:
    """Keep standard output for events, one JSON object a line; the libraries' prints go to standard error.

    Of several ranks the first one speaks.
    """
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    silent = os.environ.get("RANK", "0") != "0"

    def emit(**event: Any) -> None:
        if silent:
            return
        stream.write(json.dumps(event) + "\n")
        stream.flush()

    return emit


def guarded(what: str, action: Callable[[], T]) -> T:
    """Turn whatever a library raises into one line; the traceback is in the log."""
    try:
        return action()
    except EkdError:
        raise
    except Exception as error:
        _LOG.exception(what)
        raise RunError(f"{what}: {told(error)}") from error


def told(error: BaseException) -> str:
    """Kind and message on one line, with the first cause: a library's own exception may hide that the disk is full."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    reason = " ".join(str(error).split())[:300]
    cause = " ".join(str(first).split())[:200]
    because = f" ({type(first).__name__}: {cause})" if cause not in reason else ""
    return f"{type(error).__name__}: {reason}{because}"
