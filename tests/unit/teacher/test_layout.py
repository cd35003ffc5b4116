"""Places in a layout, units dealt to copies, and who gets what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.teacher.layout import (
    EMBEDDINGS,
    FINAL,
    Layout,
    Place,
    Unit,
    deal,
    keys_by_stage,
    transfers,
)
from ekd_nemo.teacher.source import TeacherNeeds

SIZES = st.integers(1, 4)


@given(SIZES, SIZES, SIZES)
def test_every_rank_has_one_place(tensor: int, pipeline: int, data: int) -> None:
    layout = Layout(tensor, pipeline, data)
    assert [layout.rank(layout.place(rank)) for rank in range(layout.ranks)] == list(
        range(layout.ranks)
    )
    for groups, size in (
        (layout.tensor_groups(), tensor),
        (layout.pipeline_groups(), pipeline),
    ):
        assert sorted(rank for group in groups for rank in group) == list(range(layout.ranks))
        assert {len(group) for group in groups} == {size}


def test_the_order_is_megatrons() -> None:
    """Tensor innermost, then data, then pipeline (`parallel_state.initialize_model_parallel`)."""
    layout = Layout(tensor=2, pipeline=2, data=3)
    assert layout.place(7) == Place(tensor=1, data=0, pipeline=1)
    assert layout.tensor_groups()[0] == [0, 1]
    assert layout.pipeline_groups()[0] == [0, 6]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8))
def test_units_are_dealt_once_and_evenly(microbatches: int, data: int, copies: int) -> None:
    shares = deal(microbatches, data, copies)
    units = [unit for share in shares for unit in share]
    assert units == [Unit(d, m) for d in range(data) for m in range(microbatches)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(SIZES, SIZES, SIZES, SIZES, st.booleans())
def test_every_rank_that_wants_an_output_gets_all_of_it_once(
    teacher_tensor: int, tensor: int, pipeline: int, data: int, sequence_parallel: bool
) -> None:
    teacher = Layout(teacher_tensor, 1, 1)
    student = Layout(tensor, pipeline, data, sequence_parallel)
    needs = TeacherNeeds(distribution=True, layers={3: (0,)}, pooling="mean")
    wants, unit = keys_by_stage(needs, pipeline), Unit(data - 1, 0)
    found = transfers(
        teacher, student, wants, unit, (0, 0), [FINAL, EMBEDDINGS, 3], same_ranks=False
    )
    for rank in range(student.ranks):
        place = student.place(rank)
        got = {each.key: each.part for each in found if each.target == rank}
        cut = (place.tensor, tensor) if sequence_parallel else (0, 1)
        right = {3: cut} if place.pipeline == 0 else {}
        if place.pipeline == pipeline - 1:
            right |= {FINAL: cut, EMBEDDINGS: (0, 1)}
        assert got == (right if place.data == data - 1 else {})
    pairs = [(each.target, each.key) for each in found]
    assert pairs == sorted(pairs), "both ends go through them in one order"


def test_a_rank_takes_its_own_output_where_it_can() -> None:
    teacher, student = Layout(tensor=4, pipeline=1, data=1), Layout(1, 1, 4)
    wants = keys_by_stage(TeacherNeeds(final=True), 1)
    for data in range(4):
        (only,) = transfers(
            teacher, student, wants, Unit(data, 0), (0, 0), [FINAL], same_ranks=True
        )
        assert only.source == only.target == data


@pytest.mark.parametrize(
    ("needs", "right"),
    [
        (TeacherNeeds(distribution=True), [set(), {FINAL}]),
        (TeacherNeeds(final=True, pooling="last"), [set(), {FINAL, EMBEDDINGS}]),
        (TeacherNeeds(layers={5: (0, 1), 2: (0,)}), [{2, 5}, {5}]),
    ],
)
def test_stages_need_what_their_losses_read(needs: TeacherNeeds, right: list[set[int]]) -> None:
    assert [set(keys) for keys in keys_by_stage(needs, 2)] == right
