"""One line for a disk that is full, or a folder that cannot be written."""

from collections.abc import Generator
from contextlib import contextmanager

from ekd_nemo.errors import RunError


@contextmanager
def storing(what: str) -> Generator[None, None, None]:
    """Turn an error of the operating system into one that says what could not be stored, and where.

    Raises:
        RunError: in place of OSError.
    """
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise RunError(f"{what} cannot be stored: {where}{error.strerror or error}") from error
