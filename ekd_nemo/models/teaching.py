"""A rank of the teacher's side of a split run: plain Megatron-Core, no NeMo, no training."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from ekd_nemo.backend import cpu
from ekd_nemo.backend.device import compute_device
from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.errors import EXIT_OK
from ekd_nemo.models.frozen import frozen_stage
from ekd_nemo.models.meeting import met
from ekd_nemo.models.passes import Passes
from ekd_nemo.models.phases import PhaseClock
from ekd_nemo.models.sides import Sides
from ekd_nemo.models.weights import FolderSource
from ekd_nemo.parallel.split_server import SplitServer
from ekd_nemo.records.phases import Phase
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.manifest import sequence_length
from ekd_nemo.teacher.joint import backend_here


class TeacherPhases:
    """This rank's marks: `prerun`, then `teacher_forward` while it computes and `idle` while it waits."""

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
        with self._lock:
            self._phases.enter(phase)

    def end_process(self) -> None:
        """Close the marks and end, from any thread; nothing of this rank is worth keeping."""
        with self._lock:
            self._phases.close()
            os._exit(EXIT_OK)


def teach(
    run: RunDir,
    recipe: Recipe,
    student: Architecture,
    teacher: Architecture,
    sides: Sides,
    phases: PhaseClock,
) -> int:
    """Serve the student until it is done.

    The student decides when a run stops: signals that ask for it are left to its ranks.
    """
    assert recipe.teacher is not None
    assert recipe.teacher.split is not None
    for each in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(each, signal.SIG_IGN)
    cpu.install(nemo=False)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    marks, split = TeacherPhases(phases), recipe.teacher.split
    with met(sides.seat, run, on_end=marks.end_process) as joint:
        dist.init_process_group(
            backend_here(),
            store=dist.PrefixStore("teacher", joint.store),
            rank=sides.seat.rank,
            world_size=sides.seat.teachers,
        )
        # Row-parallel layers ask for the global group although theirs is given (megatron-core 0.15.3).
        parallel_state.initialize_model_parallel(sides.teacher.tensor, sides.teacher.pipeline)
        length = sequence_length(recipe.data.path)
        source = FolderSource(recipe.teacher.path)
        stage = frozen_stage(source, sides.teacher, recipe.teacher.precision, length)
        server = SplitServer(joint, stage, sides.student, split.transport, split.depth, marks.busy)
        passes = Passes(recipe, student, teacher, sides.student, compute_device())
        server.serve(passes.after(joint.first_step()))
    return EXIT_OK
