"""The only heavy entry point: `python -m ekd_nemo.worker VERB ...`.

Light commands start it; torchrun or srun start one for each rank. Every verb names the function
that does it, and only that function's module is imported. An `EkdError` becomes one line on stderr
and its exit code; a traceback only with `--debug` or `EKD_DEBUG=1`.
"""

import importlib
import logging
import os
import sys
import traceback

from ekd_nemo.errors import EXIT_OK, EXIT_USER, EkdError

# verb -> "module:function"; the function takes the rest of argv and returns an exit code or None.
VERBS: dict[str, str] = {
    "convert": "ekd_nemo.models.convert_command:main",
    "data": "ekd_nemo.data.command:main",
    "eval": "ekd_nemo.harness.lm:main",
    "train": "ekd_nemo.models.train:main",
}

_log = logging.getLogger("ekd")


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
    try:
        module_name, function_name = VERBS[argv[0]].split(":")
        code = getattr(importlib.import_module(module_name), function_name)(argv[1:])
    except EkdError as error:
        if debug:
            traceback.print_exc()
        report_failure(error)
        return error.exit_code
    return EXIT_OK if code is None else int(code)


def report_failure(error: EkdError) -> None:
    """Write one line; of the ranks that fail alike only rank 0 speaks."""
    rank, world = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1"))
    if rank == "0" or not getattr(error, "all_ranks", True):
        where = f" (rank {rank} of {world})" if world > 1 else ""
        sys.stderr.write(f"error: {error}{where}\n")
    else:
        _log.info("rank %s: %s", rank, error)


def main() -> None:
    """Run the verb of the command line and exit with its code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
