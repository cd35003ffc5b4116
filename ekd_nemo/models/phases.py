"""Phase marks around device work, and which devices and coordinates a rank has."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from ekd_nemo.config.recipe import Parallel
from ekd_nemo.records.phases import Phase
from ekd_nemo.telemetry.marks import Marks

UUIDS_VARIABLE = "EKD_DEVICE_UUIDS"  # comma separated; the launcher's sampler knows the CPU's
ATTEMPT_VARIABLE = "EKD_ATTEMPT"


def attempt() -> int:
    """The number of this launch of the run, from 1."""
    return int(os.environ.get(ATTEMPT_VARIABLE, "1"))


def coordinates(rank: int, world: int, parallel: Parallel) -> dict[str, int]:
    """Where Megatron puts a rank: tensor innermost, then data, then pipeline."""
    data = world // (parallel.tensor * parallel.pipeline)
    return {
        "tensor": rank % parallel.tensor,
        "pipeline": rank // (parallel.tensor * data),
        "data": rank // parallel.tensor % data,
    }


def device_uuids(local_rank: int) -> list[str]:
    """The devices that this rank occupies, as the sampler names them."""
    if torch.cuda.is_available():
        return [f"GPU-{torch.cuda.get_device_properties(local_rank).uuid}"]
    return [uuid for uuid in os.environ.get(UUIDS_VARIABLE, "").split(",") if uuid]


class PhaseClock:
    """The marks of one rank. Phases nest; time belongs to the innermost."""

    def __init__(
        self, path: Path, rank: int, parallel: dict[str, int], uuids: Sequence[str]
    ) -> None:
        """Open the rank's marks file."""
        self._marks = Marks(path, rank=rank, uuids=uuids, parallel=parallel, attempt=attempt())
        self._outer = ExitStack()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Everything inside is `name`; queued device work is waited for at both ends."""
        _finish_device_work()
        with self._marks.phase(name):
            try:
                yield
            finally:
                _finish_device_work()

    def enter(self, name: Phase) -> None:
        """End the phase entered before, if any, and begin `name`, until the next `enter`."""
        self._outer.close()
        self._outer.enter_context(self.phase(name))

    def step(self, step: int, tokens: int, tokens_valid: int) -> None:
        """Mark the end of a step; see `Marks.step`."""
        self._marks.step(step=step, tokens=tokens, tokens_valid=tokens_valid)

    def close(self) -> None:
        """End what is open and close the file."""
        self._outer.close()
        self._marks.close()


def _finish_device_work() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
