"""What a failed process said, as one line, and which exit code of a rank lies behind torchrun's."""

import re
import signal
from pathlib import Path

_TAIL_BYTES = 1 << 18
_OUR_LINE = re.compile(r"^error: (?P<message>.+)$", re.MULTILINE)
_EXCEPTION = re.compile(
    r"^(?P<message>(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt)\b(?:: .*)?)$",
    re.MULTILINE,
)
# What torch.distributed.run 2.13 writes about the rank that failed first.
_FIRST_FAILURE = re.compile(r"failed \(exitcode: (?P<code>-?\d+)\) local_rank: \d+")
_TORCHRUN_ERROR = "ChildFailedError"


def text_since(log: Path, offset: int) -> str:
    """What a log has gained since it was `offset` bytes long; of very much only the end."""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(offset, size - _TAIL_BYTES))
        return file.read().decode(errors="replace")


def rank_exit_code(code: int, text: str) -> int:
    """The exit code of the rank that failed first; `code` where no launcher of ranks was in between."""
    found = _FIRST_FAILURE.search(text)
    return int(found["code"]) if found and code else code


def reason(code: int, text: str) -> str:
    """Why a process failed, in one line: its own `error:` line, else its exception, else its exit code.

    Args:
        code: as `rank_exit_code` gives it; below 0 for a signal.
        text: what the process wrote to stderr.
    """
    own = _OUR_LINE.findall(text)
    if own:
        return own[0].strip()
    exceptions = [line for line in _EXCEPTION.findall(text) if _TORCHRUN_ERROR not in line]
    if exceptions:
        return exceptions[0].strip()
    if code < 0:
        return f"killed by {signal.Signals(-code).name}" + (
            " (out of memory?)" if -code == signal.SIGKILL else ""
        )
    return f"exit code {code}"
