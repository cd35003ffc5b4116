"""Tokens of a generation against a slow, obvious count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.evals.token_count import cut_stream, generated_tokens, left_padded

END, PAD = 2, 0


def slow_count(row: list[int], ends: set[int]) -> int:
    count = 0
    for token in row:
        count = count + 1
        if token in ends:
            break
    return count


@given(st.lists(st.integers(0, 5), max_size=12), st.sets(st.integers(0, 5), max_size=3))
def test_the_count_is_that_of_a_plain_loop(row: list[int], ends: set[int]) -> None:
    assert generated_tokens(row, ends) == slow_count(row, ends)


@pytest.mark.parametrize(
    ("row", "ends", "expected"),
    [
        ([7, 7, END, PAD, PAD], {END}, 3),  # ended early, padded
        ([7, 7, END, END, END], {END}, 3),  # padding has the id of the end
        ([END, PAD], {END}, 1),  # nothing but the end
        ([7, 7, 7], {END}, 3),  # cut off by the limit
        ([7, 5, END], {END, 5}, 2),  # several ids end
        ([7, END, 7], set(), 3),  # end-of-sequence ignored
        ([], {END}, 0),
    ],
)
def test_ends_and_padding(row: list[int], ends: set[int], expected: int) -> None:
    assert generated_tokens(row, ends) == expected


def test_padding_stands_in_front_and_is_masked() -> None:
    ids, masks = left_padded([[5], [6, 7, 8]], PAD)
    assert ids == [[0, 0, 5], [6, 7, 8]]
    assert masks == [[0, 0, 1], [1, 1, 1]]


@given(st.lists(st.lists(st.integers(0, 9)), max_size=5), st.integers(1, 6), st.integers(1, 7))
def test_cut_pieces_have_one_length_and_follow_the_prompts(
    rows: list[list[int]], count: int, length: int
) -> None:
    stream = [token for row in rows for token in row]
    if not stream:
        with pytest.raises(ValueError, match="no tokens"):
            cut_stream(rows, count, length)
        return
    pieces = cut_stream(rows, count, length)
    assert [len(piece) for piece in pieces] == [length] * count
    flat = [token for piece in pieces for token in piece]
    assert flat == [stream[number % len(stream)] for number in range(count * length)]
