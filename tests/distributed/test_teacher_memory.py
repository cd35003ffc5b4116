"""What a shared teacher costs: weights, this rank's outputs of a global batch, one microbatch's activations."""

import gc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ekd_nemo.config.recipe import Parallel
from ekd_nemo.models.weights import FolderSource
from ekd_nemo.teacher.layout import FINAL, Layout
from ekd_nemo.teacher.source import TeacherNeeds
from tests.distributed.gpt_ranks import start_parallel
from tests.distributed.live_bytes import LiveBytes
from tests.distributed.ranks import run_ranks
from tests.distributed.test_relaid_teacher import LENGTH, Cuts, microbatch
from tests.e2e.training import TEACHER, write_model

CASES: list[Cuts] = [
    (Parallel(tensor=2), Parallel()),  # the teacher over both copies of the student
    (Parallel(pipeline=2), Parallel(tensor=2)),
]
BATCH, WIDTH, FLOAT = 2, TEACHER.hidden_size, 4
OUTPUT = BATCH * LENGTH * WIDTH * FLOAT  # a microbatch's last hidden states


def measured(rank: int, world: int, folder: Path, cases: list[Cuts]) -> list[dict[str, int]]:
    """For each layout: bytes held and most bytes with few and many microbatches."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    found: list[dict[str, int]] = []
    for teacher, student in cases:
        start_parallel(student.tensor, student.pipeline)
        with LiveBytes("weights") as live:
            found.append(
                _measured(live, folder, Layout.of(teacher, world), Layout.of(student, world))
            )
        dist.barrier()
        parallel_state.destroy_model_parallel()
    return found


def _measured(live: LiveBytes, folder: Path, teacher: Layout, student: Layout) -> dict[str, int]:
    import torch.distributed as dist

    from ekd_nemo.models.frozen import frozen_stage, head_rows
    from ekd_nemo.parallel.relaid_teacher import RelaidTeacher

    source, place = FolderSource(folder), student.place(dist.get_rank())
    stage = frozen_stage(source, teacher, "fp32", LENGTH)
    model: Any = stage._model
    shared = RelaidTeacher(stage, student, head_rows(source, student, place, "fp32"))
    needs = TeacherNeeds(distribution=True)
    shared.outputs([microbatch(place.data, 0)], needs)  # caches of rotary angles and groups
    line = {
        "weights": sum(p.numel() * p.element_size() for p in model.parameters()),
        "buffers": sum(b.numel() * b.element_size() for b in model.buffers()),
        "grads": sum(p.grad is not None or p.requires_grad for p in model.parameters()),
    }
    batches = [microbatch(place.data, m) for m in range(8)]
    for batch in batches:
        assert batch.attention  # the student's mask is not the teacher's cost
    incoming = None if stage.first else torch.zeros(LENGTH, BATCH, WIDTH)
    with _most(live, "alone", line):
        stage.forward(batches[0], incoming, [FINAL] if stage.last else [], None)
    for count in (2, 8):
        with _most(live, f"{count}", line):
            out = shared.outputs(batches[:count], needs)
            line[f"held-{count}"] = live.settled(f"{count}", count * OUTPUT)
        assert len(out.hidden) == count
    return line


@contextmanager
def _most(live: LiveBytes, name: str, line: dict[str, int]) -> Generator[None]:
    """Note the most bytes that were made inside and there at once."""
    gc.collect()
    live.restart()
    with live.part(name):
        yield
    line[f"most-{name}"] = live.fullest[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("memory") / "teacher"
    write_model(place, TEACHER, seed=3)
    return place


def test_it_adds_weights_outputs_and_one_microbatchs_activations(
    folder: Path, tmp_path: Path
) -> None:
    by_rank = run_ranks(measured, 2, tmp_path, folder, CASES, timeout_s=240)
    late = 2 * OUTPUT  # gloo's two threads may each still hold the message before
    tokens = 5 * BATCH * LENGTH * 8  # a microbatch as it is passed on: five fields of int64
    mask = BATCH * LENGTH * LENGTH
    for number, (teacher, _) in enumerate(CASES):
        for rank in by_rank:
            found = rank[number]
            assert found["grads"] == 0
            assert found["held-2"] == 2 * OUTPUT, "outputs of the rank's own microbatches only"
            assert found["held-8"] == 8 * OUTPUT
            # Beside outputs: the tokens that were gathered for the teacher, twice (packed and
            # arrived), for every microbatch that this copy works, with their attention masks.
            worked = 2 if teacher.tensor == 2 else 1
            each = OUTPUT + (1 + 2 * worked) * tokens + 2 * worked * mask
            assert found["most-8"] - found["most-2"] <= 6 * each + late
            assert found["most-2"] <= 2 * each + found["most-alone"] + late, (
                "activations of one microbatch"
            )
    parameters = sum(p for p in (by_rank[r][0]["weights"] for r in range(2)))
    whole = sum(t.numel() for t in (FolderSource(folder).get(n) for n in names(folder))) * FLOAT
    norms = (2 * TEACHER.num_layers + 1) * WIDTH * FLOAT  # on both tensor ranks
    padding = (512 - TEACHER.vocab_size) * WIDTH * FLOAT
    assert parameters == whole + norms + padding
    assert all(rank[0]["buffers"] == 0 for rank in by_rank)


def names(folder: Path) -> list[str]:
    from ekd_nemo.models.weights import tensor_shapes

    return list(tensor_shapes(FolderSource(folder).architecture))
