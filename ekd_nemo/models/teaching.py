"""A rank of the teacher's side of a split run: plain Megatron-Core, no NeMo, no training."""

import signal

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from ekd_nemo.backend import cpu
from ekd_nemo.backend.device import compute_device
from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.errors import EXIT_OK
from ekd_nemo.models.frozen import frozen_stage
from ekd_nemo.models.meeting import met
from ekd_nemo.models.passes import Passes
from ekd_nemo.models.phases import PhaseClock, TeacherPhases
from ekd_nemo.models.precision import check_teacher_fp8
from ekd_nemo.models.sides import Sides
from ekd_nemo.models.weights import FolderSource
from ekd_nemo.parallel.exchange import GROUP_LIMIT
from ekd_nemo.parallel.split_server import SplitServer
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.manifest import sequence_length
from ekd_nemo.teacher.joint import backend_here
from ekd_nemo.teacher.layout import Layout


def start_megatron(layout: Layout) -> None:
    """What a forward pass asks of Megatron's global state, although the model has groups of its own.

    Row-parallel layers ask for the tensor group, and with sequence parallelism the embedding for the
    tracked random state (megatron-core 0.15.3).
    """
    parallel_state.initialize_model_parallel(layout.tensor, layout.pipeline)
    model_parallel_cuda_manual_seed(1234)


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
    marks, split = TeacherPhases(phases), recipe.teacher.split
    with met(sides.seat, run, on_end=marks.end_process) as joint:
        dist.init_process_group(
            backend_here(),
            timeout=GROUP_LIMIT,
            store=dist.PrefixStore("teacher", joint.store),
            rank=sides.seat.rank,
            world_size=sides.seat.teachers,
        )
        start_megatron(sides.teacher)
        length = sequence_length(recipe.data.path)
        check_teacher_fp8(recipe, teacher, length * recipe.train.micro_batch_size)
        source = FolderSource(recipe.teacher.path)
        stage = frozen_stage(source, sides.teacher, recipe.teacher.precision, length)
        server = SplitServer(joint, stage, sides.student, split.transport, split.depth, marks.busy)
        passes = Passes(recipe, student, teacher, sides.student, compute_device())
        server.serve(passes.after(joint.first_step()))
    return EXIT_OK
