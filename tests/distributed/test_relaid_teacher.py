"""A teacher in another layout than the student's, on the same ranks, against transformers in one process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ekd_nemo.config.recipe import Parallel
from ekd_nemo.losses.pooling import pool
from ekd_nemo.models.weights import FolderSource
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.teacher.layout import Layout
from ekd_nemo.teacher.source import TeacherNeeds
from tests.distributed.gpt_ranks import start_parallel
from tests.distributed.ranks import run_ranks
from tests.e2e.training import TEACHER, write_model

LENGTH, VOCAB, MICROBATCHES = 16, 500, 3
# fp32; other orders of summation over tensor ranks. Hidden states are of the order of 1.
TOLERANCE = 1e-5
Cuts = tuple[Parallel, Parallel]  # teacher, student
ONE = Parallel()
LAYOUTS: dict[int, list[Cuts]] = {
    2: [
        (Parallel(tensor=2), ONE),
        (Parallel(pipeline=2), Parallel(tensor=2)),
        (Parallel(pipeline=2), Parallel(tensor=2, sequence_parallel=True)),
        (ONE, Parallel(pipeline=2)),  # three microbatches for two copies: one gets more
        (Parallel(tensor=2, sequence_parallel=True), Parallel(pipeline=2)),
    ],
    4: [
        (Parallel(tensor=2, pipeline=2), ONE),
        (Parallel(pipeline=4), Parallel(tensor=2, pipeline=2)),
        (
            Parallel(tensor=2, sequence_parallel=True),
            Parallel(tensor=2, pipeline=2, sequence_parallel=True),
        ),
    ],
}


def microbatch(data: int, index: int) -> Microbatch:
    """Two samples of two or three segments, one with padding; the same wherever it is made."""
    draw = torch.Generator().manual_seed(100 * data + index)
    tokens = torch.randint(0, VOCAB, (2, LENGTH), generator=draw)
    segments = torch.tensor([[0] * 7 + [1] * 9, [0] * 3 + [1] * 6 + [2] * 4 + [-1] * 3])
    mask = (torch.rand(2, LENGTH, generator=draw) < 0.7) & (segments >= 0)
    positions = torch.arange(LENGTH).expand(2, -1)
    return Microbatch(tokens, tokens.roll(-1, 1), mask, positions, segments, ("a", "b"))


def reference(folder: Path, batch: Microbatch) -> dict[int, Tensor]:
    """Layer -> [S, B, H] by transformers; -1 is the final hidden state."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    blocked = batch.attention["attention_mask"]
    added = torch.zeros(blocked.shape).masked_fill(blocked, torch.finfo(torch.float32).min)
    with torch.no_grad():
        states = model.model(
            batch.tokens,
            attention_mask=added,
            position_ids=batch.position_ids,
            output_hidden_states=True,
        ).hidden_states
    layers = {n: each.transpose(0, 1) for n, each in enumerate(states[1:-1])}
    return layers | {-1: states[-1].transpose(0, 1)}


def relaid(rank: int, world: int, folder: Path, cases: list[Cuts]) -> list[dict[str, Any]]:
    """What this rank gets in each case."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from ekd_nemo.models.frozen import frozen_stage, head_rows
    from ekd_nemo.parallel.relaid_teacher import RelaidTeacher

    source, found = FolderSource(folder), []
    for teacher, student in cases:
        start_parallel(student.tensor, student.pipeline)
        cut = Layout.of(student, world)
        place = cut.place(rank)
        assert place.data == parallel_state.get_data_parallel_rank()
        assert place.pipeline == parallel_state.get_pipeline_model_parallel_rank()
        stage = frozen_stage(source, Layout.of(teacher, world), "fp32", LENGTH)
        last = place.pipeline == student.pipeline - 1
        head = head_rows(source, cut, place, "fp32") if last else None
        out = RelaidTeacher(stage, cut, head).outputs(
            [microbatch(place.data, m) for m in range(MICROBATCHES)],
            TeacherNeeds(
                distribution=True, layers={0: (0,), 2: (0, student.pipeline - 1)}, pooling="mean"
            ),
        )
        found.append(
            {
                "hidden": out.hidden,
                "layers": dict(out.layers),
                "embeddings": out.embeddings,
                "head": out.head,
            }
        )
        dist.barrier()
        parallel_state.destroy_model_parallel()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("relaid") / "teacher"
    write_model(place, replace(TEACHER, tied_embeddings=False, initializer_range=0.1), seed=3)
    return place


@pytest.mark.parametrize("world", sorted(LAYOUTS))
def test_every_rank_gets_what_one_process_computes(
    world: int, folder: Path, tmp_path: Path
) -> None:
    by_rank = run_ranks(relaid, world, tmp_path, folder, LAYOUTS[world], timeout_s=280)
    expected = {
        (d, m): reference(folder, microbatch(d, m))
        for d in range(world)
        for m in range(MICROBATCHES)
    }
    for case, (_, student) in enumerate(LAYOUTS[world]):
        cut = Layout.of(student, world)
        for rank in range(world):
            check(by_rank[rank][case], cut, rank, expected, FolderSource(folder))


def check(
    got: dict[str, Any],
    cut: Layout,
    rank: int,
    expected: dict[tuple[int, int], dict[int, Tensor]],
    source: FolderSource,
) -> None:
    place = cut.place(rank)
    first, last = place.pipeline == 0, place.pipeline == cut.pipeline - 1
    wanted = {layer for layer, there in ((0, first), (2, first or last)) if there}
    assert set(got["layers"]) == wanted
    assert len(got["hidden"]) == len(got["embeddings"]) == (MICROBATCHES if last else 0)
    assert (got["head"] is not None) == last
    for m in range(MICROBATCHES):
        right = expected[place.data, m]
        for layer in wanted:
            close(got["layers"][layer][m], part(right[layer], cut, place.tensor))
        if last:
            close(got["hidden"][m], part(right[-1], cut, place.tensor))
            close(got["embeddings"][m], pooled(right[-1], microbatch(place.data, m)))
    if last:
        rows = len(got["head"])
        real = source.get("lm_head.weight")[place.tensor * rows : (place.tensor + 1) * rows]
        assert torch.equal(got["head"][: len(real)], real)
        assert not got["head"][len(real) :].any()


def part(whole: Tensor, cut: Layout, tensor: int) -> Tensor:
    return whole.chunk(cut.tensor)[tensor] if cut.sequence_parallel else whole


def pooled(hidden: Tensor, batch: Microbatch) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    return pool(flat, batch.flat_segments, batch.num_segments)


def close(got: Tensor, right: Tensor, near: float = TOLERANCE) -> None:
    torch.testing.assert_close(got, right, rtol=near, atol=near)
