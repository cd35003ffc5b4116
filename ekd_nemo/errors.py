"""The error tree and its exit codes.

A message is one line: what is wrong, where (file, line, key), what is accepted.
The command line prints it without a traceback unless `--debug` is given.
"""

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USER = 2
# A worker that was asked to stop (SIGTERM, SIGUSR1) and has saved its state: the batch script may requeue it.
EXIT_SAVED = 75


class EkdError(Exception):
    """Anything that ekd reports by itself; a failure unless a subclass says otherwise."""

    exit_code = EXIT_FAILURE


class RunError(EkdError):
    """A run, a part of it or a tool that it started has failed."""


class UserError(EkdError):
    """Something the user gave is wrong; nothing has been changed."""

    exit_code = EXIT_USER


class ConfigError(UserError):
    """A recipe, cluster file or override that does not parse or resolve."""


class DataError(UserError):
    """A data set, shard or record that cannot be read as what it claims to be."""


class CheckpointError(UserError):
    """A model folder or checkpoint that is absent, incomplete or of another shape."""


class LayoutError(UserError):
    """A parallel layout that does not fit the model or the world size."""


class RunDirError(UserError):
    """A run directory that is empty, of another recipe, or not to be overwritten."""


class MissingExtraError(UserError):
    """A command that needs an optional extra that is not installed."""

    def __init__(self, command: str, extra: str) -> None:
        """Name the command and the extra of `ekd-nemo` that it needs."""
        super().__init__(f"{command} needs the extra '{extra}': pip install 'ekd-nemo[{extra}]'")
