"""The only heavy entry point: `python -m ekd_nemo.worker VERB ...`.

Light commands start it; torchrun or srun start one for each rank. Every verb names the function
that does it, and only that function's module is imported. An `EkdError` becomes one line on stderr
and its exit code; a traceback only with `--debug` or `EKD_DEBUG=1`.
"""

import importlib
import logging
import os
import sys
import time
import traceback
import warnings

from ekd_nemo.errors import EXIT_OK, EXIT_USER, EkdError

# verb -> "module:function"; the function takes the rest of argv and returns an exit code or None.
VERBS: dict[str, str] = {
    "cache": "ekd_nemo.models.cache_command:main",
    "convert": "ekd_nemo.models.convert_command:main",
    "data": "ekd_nemo.data.command:main",
    "ept": "ekd_nemo.harness.ept:main",
    "eval": "ekd_nemo.harness.lm:main",
    "train": "ekd_nemo.models.train:main",
}

OTHER_RANKS_WAIT_S = 3.0


def run(argv: list[str]) -> int:
    """Do one verb.

    Args:
        argv: the verb and its arguments; `--debug` first asks for tracebacks.

    Returns:
        The exit code; other exceptions than `EkdError` propagate.
    """
    debug = os.environ.get("EKD_DEBUG", "") not in ("", "0")
    if argv and argv[0] == "--debug":
        debug, argv = True, argv[1:]
    if not argv or argv[0] not in VERBS:
        given = f"'{argv[0]}'" if argv else "nothing"
        sys.stderr.write(
            f"error: the worker was given {given}; it takes one of: {', '.join(sorted(VERBS))}\n"
        )
        return EXIT_USER
    if not debug:
        quieten()
    try:
        module_name, function_name = VERBS[argv[0]].split(":")
        code = getattr(importlib.import_module(module_name), function_name)(argv[1:])
    except EkdError as error:
        if debug:
            traceback.print_exc()
        report_failure(error)
        return error.exit_code
    return EXIT_OK if code is None else int(code)


def quieten() -> None:
    """Keep the libraries' warnings off the console; `--debug` shows them.

    NeMo, Lightning and torch say dozens of lines about packages that are not there.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def report_failure(error: EkdError) -> None:
    """Write one line.

    Ranks that fail alike fail at once: rank 0 speaks, and whoever started the ranks ends the rest
    before they do. A rank that fails alone speaks a little later.
    """
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(OTHER_RANKS_WAIT_S)
    sys.stderr.write(f"error: {error}" + (f" (rank {rank})\n" if rank != "0" else "\n"))


def main() -> None:
    """Run the verb of the command line and exit with its code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
