"""Two worlds joined: what the student's ranks get from a teacher on ranks of its own."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ekd_nemo.config.recipe import Parallel, Precision
from ekd_nemo.models.weights import FolderSource
from ekd_nemo.teacher.joint import Joint, Seat, joined
from ekd_nemo.teacher.layout import Layout
from ekd_nemo.teacher.source import TeacherNeeds
from tests.distributed.gpt_ranks import start_parallel
from tests.distributed.ranks import run_ranks
from tests.distributed.test_relaid_teacher import (
    LENGTH,
    MICROBATCHES,
    ONE,
    Cuts,
    close,
    microbatch,
    part,
    pooled,
    reference,
)
from tests.e2e.training import TEACHER, write_model

Case = tuple[int, Cuts, Precision]  # teacher ranks, layouts, transport
CASES: dict[int, list[Case]] = {
    2: [(1, (ONE, ONE), "fp32"), (1, (ONE, ONE), "bf16"), (1, (ONE, ONE), "fp8")],
    4: [
        (2, (Parallel(tensor=2, sequence_parallel=True), ONE), "fp32"),
        (2, (Parallel(pipeline=2), Parallel(tensor=2, sequence_parallel=True)), "fp32"),
        (2, (ONE, Parallel(pipeline=2)), "fp32"),
        (1, (ONE, Parallel(pipeline=3)), "fp32"),
    ],
}
# bf16 has 8 bits, so 2^-9 of an element; E4M3 has 4, so 2^-5, or 2^-10 / 448 of the row's largest.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "bf16": 2**-8, "fp8": 2**-4}


def needs(pipeline: int) -> TeacherNeeds:
    return TeacherNeeds(distribution=True, layers={0: (0,), 2: (0, pipeline - 1)}, pooling="mean")


@contextlib.contextmanager
def side(seat: Seat, folder: Path) -> Any:
    """This rank in the world of its side, joined to the other."""
    if dist.is_initialized():
        dist.destroy_process_group()
    folder.mkdir(parents=True, exist_ok=True)
    size = seat.students if seat.side == "student" else seat.teachers
    store = dist.FileStore(str(folder / seat.side), size)
    dist.init_process_group("gloo", store=store, rank=seat.rank, world_size=size)
    with joined(seat, folder, "gloo") as joint:
        yield joint


def taught(rank: int, world: int, folder: Path, cases: list[Case], meet: Path) -> list[Any]:
    """Each case once; what this rank of the student gets, None on the teacher's ranks."""
    source, found = FolderSource(folder), []
    for number, (teachers, cuts, transport) in enumerate(cases):
        students = world - teachers
        seat = (
            Seat("student", rank, students, teachers)
            if rank < students
            else Seat("teacher", rank - students, students, teachers)
        )
        layouts = Layout.of(cuts[0], teachers), Layout.of(cuts[1], students)
        with side(seat, meet / str(number)) as joint:
            if seat.side == "student":
                found.append(learn(joint, source, layouts, transport))
            else:
                serve(joint, source, layouts, transport)
                found.append(None)
    return found


def serve(
    joint: Joint, source: FolderSource, layouts: tuple[Layout, Layout], transport: Precision
) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    from ekd_nemo.backend import cpu
    from ekd_nemo.models.frozen import frozen_stage
    from ekd_nemo.models.teaching import start_megatron
    from ekd_nemo.parallel.split_server import Pass, SplitServer

    cpu.install(nemo=False)
    get_cuda_rng_tracker().reset()  # a rank of the teacher's begins without a random state
    start_megatron(layouts[0])
    stage = frozen_stage(source, layouts[0], "fp32", LENGTH)
    server = SplitServer(joint, stage, layouts[1], transport, 1, contextlib.nullcontext)
    one = Pass(MICROBATCHES, needs(layouts[1].pipeline), lambda u: microbatch(u.data, u.index))
    server.serve([one, one])
    parallel_state.destroy_model_parallel()


def learn(
    joint: Joint, source: FolderSource, layouts: tuple[Layout, Layout], transport: Precision
) -> dict[str, Any]:
    from ekd_nemo.parallel.split_teacher import Remote, SplitTeacher

    teacher, student = layouts
    arch = source.architecture
    remote = Remote(teacher, arch.num_layers, arch.hidden_size, transport)
    place = student.place(joint.seat.rank)
    head = torch.zeros(1, arch.hidden_size) if place.pipeline == student.pipeline - 1 else None
    source_of = SplitTeacher(joint, remote, student, head, torch.float32)
    batches = [microbatch(place.data, m) for m in range(MICROBATCHES)]
    for _ in range(2):
        out = source_of.outputs(batches, needs(student.pipeline))
    return {"hidden": out.hidden, "layers": dict(out.layers), "embeddings": out.embeddings}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("split") / "teacher"
    write_model(place, replace(TEACHER, initializer_range=0.1), seed=3)
    return place


@pytest.mark.parametrize("world", sorted(CASES))
def test_the_student_gets_what_one_process_computes(
    world: int, folder: Path, tmp_path: Path
) -> None:
    by_rank = run_ranks(
        taught, world, tmp_path, folder, CASES[world], tmp_path / "meet", timeout_s=280
    )
    expected = {
        (d, m): reference(folder, microbatch(d, m))
        for d in range(world)
        for m in range(MICROBATCHES)
    }
    for number, (teachers, cuts, transport) in enumerate(CASES[world]):
        cut = Layout.of(cuts[1], world - teachers)
        for rank in range(cut.ranks):
            place, got = cut.place(rank), by_rank[rank][number]
            first, last = place.pipeline == 0, place.pipeline == cut.pipeline - 1
            wanted = {layer for layer, there in ((0, first), (2, first or last)) if there}
            assert set(got["layers"]) == wanted
            assert len(got["hidden"]) == len(got["embeddings"]) == (MICROBATCHES if last else 0)
            for m in range(MICROBATCHES):
                right, near = expected[place.data, m], TOLERANCES[transport]
                for layer in wanted:
                    close(got["layers"][layer][m], part(right[layer], cut, place.tensor), near)
                if last:
                    close(got["hidden"][m], part(right[-1], cut, place.tensor), near)
                    close(got["embeddings"][m], pooled(right[-1], microbatch(place.data, m)))


def ahead(rank: int, world: int, folder: Path, depth: int, meet: Path) -> list[int]:
    """The student takes six passes slowly; how many the teacher had begun when each was asked for."""
    from ekd_nemo.models.frozen import frozen_stage
    from ekd_nemo.parallel.split_server import Pass, SplitServer
    from ekd_nemo.parallel.split_teacher import Remote, SplitTeacher

    source, one = FolderSource(folder), Layout(1, 1, 1)
    arch, wanted = source.architecture, TeacherNeeds(distribution=True)
    with side(Seat(("student", "teacher")[rank], 0, 1, 1), meet) as joint:  # pyright: ignore
        if rank == 1:

            def begun(*_: object) -> Any:
                joint.store.add("begun", 1)
                return microbatch(0, 0)

            start_parallel(1, 1)
            stage = frozen_stage(source, one, "fp32", LENGTH)
            server = SplitServer(joint, stage, one, "fp32", depth, contextlib.nullcontext)
            server.serve([Pass(1, wanted, begun)] * 6)
            return []
        remote = Remote(one, arch.num_layers, arch.hidden_size, "fp32")
        head = torch.zeros(1, arch.hidden_size)
        teacher, found = SplitTeacher(joint, remote, one, head, torch.float32), list[int]()
        for _ in range(6):
            time.sleep(0.5)  # a pass of this teacher takes some milliseconds
            found.append(joint.store.add("begun", 0))
            teacher.outputs([microbatch(0, 0)], wanted)
        return found


@pytest.mark.parametrize("depth", [1, 2])
def test_the_teacher_is_never_further_ahead_than_told(
    depth: int, folder: Path, tmp_path: Path
) -> None:
    """Before the student takes pass p (from 0), passes p to p + depth - 1 have begun, none beyond."""
    found = run_ranks(ahead, 2, tmp_path, folder, depth, tmp_path / "meet", timeout_s=120)[0]
    assert found == [min(p + depth, 6) for p in range(6)]
