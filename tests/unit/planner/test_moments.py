"""The fullest moment of a step: which one it is, and what belongs to it."""

from dataclasses import replace

import pytest

from ekd_nemo.planner.layout import Layout
from ekd_nemo.planner.memory import Outputs, student_memory
from ekd_nemo.planner.moments import (
    LOSS_CHUNK_BYTES,
    Features,
    Losses,
    fullest_moment,
    kept_microbatches,
    layer_bytes,
)
from ekd_nemo.planner.timing import Work
from tests.unit.planner.models import LLAMA_8B, QWEN_7B

WORK = Work(LLAMA_8B, Layout(2, 4, 2, sequence_parallel=True), "bf16", 8192, 64)
SMALL = replace(WORK, sequence=16)


# (chunks a stage, microbatches) -> kept by each of four stages: those forward before the first backward, and one.
KEPT = {
    (1, 8): [4, 3, 2, 1],
    (1, 2): [2, 2, 2, 1],
    (2, 8): [11 / 2, 9 / 2, 7 / 2, 5 / 2],
    (4, 8): [19 / 4, 17 / 4, 15 / 4, 13 / 4],
    (4, 4): [4, 4, 15 / 4, 13 / 4],
}


@pytest.mark.parametrize(("schedule", "expected"), KEPT.items())
def test_microbatches_kept_are_those_of_the_schedule(
    schedule: tuple[int, int], expected: list[float]
) -> None:
    chunks, microbatches = schedule
    work = replace(WORK, layout=Layout(1, 4, 1, virtual=chunks), samples=microbatches)
    assert [kept_microbatches(work, stage) for stage in range(4)] == expected


def test_few_tokens_are_fullest_at_the_embedding_and_many_in_the_layers() -> None:
    rows = 128256 // 2 * 4096 * 2  # its gradient, bf16
    few = fullest_moment(SMALL, "gpu", 0, Losses())
    assert rows < few.total < 1.1 * rows
    many = fullest_moment(WORK, "gpu", 0, Losses())
    assert many.activations > 4 * 8 * 8192 * layer_bytes(WORK, "gpu")  # 4 microbatches, 8 layers
    assert many.loss == 0


def test_a_tied_weight_on_one_stage_has_three_gradients_at_once() -> None:
    tied = replace(LLAMA_8B, tied_embeddings=True)
    one = replace(SMALL, arch=tied, layout=Layout(2), precision="fp32", head_share=0.0)
    rows = 128256 // 2 * 4096 * 4
    moment = fullest_moment(one, "gpu", 0, Losses())
    assert (int(moment.activations), int(moment.loss)) == (2 * rows, rows)
    two = replace(one, layout=Layout(2, 2))
    # The first stage has the embedding's alone, beside the other microbatch that it keeps.
    assert rows < fullest_moment(two, "gpu", 0, Losses()).total < 1.05 * rows


def test_the_optimiser_of_the_cpu_may_be_the_fullest() -> None:
    bare = replace(SMALL, precision="fp32", layout=Layout())
    moment = fullest_moment(bare, "cpu", 0, Losses())
    assert moment.optimizer == 2 * 4 * 128256 * 4096
    assert fullest_moment(bare, "gpu", 0, Losses()).optimizer == 0


def test_the_loss_is_bounded_unless_rows_must_be_whole() -> None:
    last = replace(WORK, layout=replace(WORK.layout, pipeline=1), recompute="full")
    plain = fullest_moment(last, "gpu", 0, Losses(4096, dense=True, compares=True)).loss
    whole = fullest_moment(last, "gpu", 0, Losses(4096, True, True, whole_rows=True)).loss
    # A chunk of both models' logits in bf16 fills the bound, so does one of them in fp32: four of those
    # at once, or five tiles, that of the tile before among them.
    expected = 4 * LOSS_CHUNK_BYTES - 5 * (64 << 20)
    assert whole - plain == pytest.approx(expected, rel=0.1)
    rows = fullest_moment(last, "gpu", 0, Losses(4096, False, True, whole_rows=True)).loss
    tiles = fullest_moment(last, "gpu", 0, Losses(4096, False, True)).loss
    # One model's logits alone: twice the rows, so twice as much in fp32.
    assert rows - tiles == pytest.approx(2 * 2 * LOSS_CHUNK_BYTES - 3 * (64 << 20), rel=0.1)
    chunked = Losses(4096, dense=True, compares=True, chunk_tokens=1)
    assert fullest_moment(last, "gpu", 0, chunked).loss < plain - 0.9 * LOSS_CHUNK_BYTES
    in_place = Losses(4096, True, True, whole_rows=True, in_place=True)
    saved = whole - fullest_moment(last, "gpu", 0, in_place).loss
    assert saved == pytest.approx(4 * LOSS_CHUNK_BYTES, rel=0.1)


def test_recomputation_saves_layers_and_attention_keeps_no_scores() -> None:
    kinds = ("none", "selective", "full")
    none, selective, full = (
        fullest_moment(replace(WORK, recompute=kind), "gpu", 0, Losses()).activations  # type: ignore[arg-type]
        for kind in kinds
    )
    assert none == selective  # nothing of flash attention is left to save
    assert full < none / 5


def test_maps_of_the_feature_loss_are_whole_on_every_tensor_rank() -> None:
    work, pairs = replace(WORK, layout=Layout(4)), Features(3, 1.0, projected=True)
    bare = student_memory(work, None, False, "gpu", 0, Losses())
    mapped = student_memory(work, None, False, "gpu", 0, Losses(8192, features=pairs))
    maps = 3 * 4096 * 8192
    assert mapped.student_weights - bare.student_weights == 2 * maps
    assert mapped.gradients - bare.gradients == 4 * maps
    assert mapped.optimizer - bare.optimizer == 12 * maps


def test_outputs_are_where_they_are_wanted_and_made() -> None:
    outputs = Outputs(final=True, pairs=((5, 0), (5, 7), (27, 7)))
    layout = Layout(1, 4)
    assert [outputs.wanted_at(stage, layout, 8) for stage in range(4)] == [1, 0, 0, 3]
    assert [outputs.made_at(stage, layout, QWEN_7B.num_layers) for stage in range(4)] == [
        1,
        0,
        0,
        2,
    ]
    assert outputs.states == 3
    interleaved = Layout(1, 2, virtual=2)  # layers 0, 1, 4, 5 and 2, 3, 6, 7
    assert [outputs.pairs_at(stage, interleaved, 8) for stage in range(2)] == [1, 2]
