"""Phase marks around device work, and which devices and coordinates a rank has."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from ekd_nemo.config.recipe import Parallel
from ekd_nemo.errors import EXIT_OK
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

    def enter(self, name: Phase, *, wait: bool = True) -> None:
        """End the phase entered before, if any, and begin `name`, until the next `enter`.

        Args:
            name: of the phase.
            wait: for all queued device work first; False where the caller has waited for what matters.
        """
        if wait:
            _finish_device_work()
        self._outer.close()
        self._outer.enter_context(self._marks.phase(name))

    def step(self, step: int, tokens: int, tokens_valid: int) -> None:
        """Mark the end of a step; see `Marks.step`."""
        self._marks.step(step=step, tokens=tokens, tokens_valid=tokens_valid)

    def close(self, *, wait: bool = True) -> None:
        """End what is open and close the file; `wait` as for `enter`."""
        if wait:
            _finish_device_work()
        self._outer.close()
        self._marks.close()


class TeacherPhases:
    """This rank's marks: `prerun`, then `teacher_forward` while it computes and `idle` while it waits.

    A message stays in NCCL's own queue until the student takes it. Whoever waited for the whole device
    would wait for the student: no pass would be made ahead, the wait would count as computing, and
    after the student's end, when nobody takes the last messages, it would never be over.
    """

    def __init__(self, phases: PhaseClock) -> None:
        """Hold the clock, in whatever phase it is."""
        self._phases, self._lock = phases, threading.Lock()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """The teacher computes inside."""
        self._enter("teacher_forward")
        yield
        self._enter("idle")

    def _enter(self, phase: Phase) -> None:
        _finish_computing()  # not under the lock: where a neighbour has ended, this never returns
        with self._lock:
            self._phases.enter(phase, wait=False)

    def end_process(self) -> None:
        """Close the marks and end, from any thread; nothing of this rank is worth keeping."""
        with self._lock:
            self._phases.close(wait=False)
            os._exit(EXIT_OK)


def _finish_computing() -> None:
    """Wait for what this thread has queued to compute, and not for messages that wait to be taken."""
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


def _finish_device_work() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
