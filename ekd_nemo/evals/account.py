"""Evaluation under telemetry: the phase `eval` in the run's marks."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Final

from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.marks import Marks

_RANK: Final = 0
_ONE_PROCESS: Final = {"tensor": 0, "pipeline": 0, "data": 0}


@contextmanager
def marked(run: RunDir, uuids: Sequence[str], attempt: int) -> Generator[None, None, None]:
    """Mark the time inside as phase `eval` of the run.

    Args:
        run: whose marks are written, as those of rank 0.
        uuids: the accelerators that the evaluation occupies.
        attempt: the launch that it belongs to.
    """
    marks = Marks(run.marks(_RANK), rank=_RANK, uuids=uuids, parallel=_ONE_PROCESS, attempt=attempt)
    try:
        with marks.phase("eval"):
            yield
    finally:
        marks.close()
