import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.data.encoding import Encoded
from ekd_nemo.data.packing import Packer, Sample
from ekd_nemo.sources.document import Document


def documents(lengths: list[int]) -> list[Encoded]:
    """Documents whose tokens are all different, every third of them not learned."""
    starts = np.cumsum([0, *lengths])
    ids = [np.arange(first, last) for first, last in itertools.pairwise(starts)]
    return [Encoded(Document(f"{n}", text=f"{n}"), t, t % 3 > 0) for n, t in enumerate(ids)]


def packed(
    lengths: list[int], sequence_length: int, open_samples: int, window: int = 5
) -> list[Sample]:
    packer = Packer(sequence_length, open_samples, window)
    done = [sample for document in documents(lengths) for sample in packer.add(document)]
    return done + list(packer.flush())


LENGTHS = st.lists(st.integers(0, 40), max_size=60)


@given(LENGTHS, st.integers(2, 16), st.integers(1, 8))
def test_every_token_is_packed_once_with_its_mask(
    lengths: list[int], s: int, open_samples: int
) -> None:
    samples = packed(lengths, s, open_samples)
    tokens = [segment for sample in samples for segment in sample.tokens]
    counted = Counter(int(t) for segment in tokens for t in segment)
    assert counted == Counter(range(sum(lengths)))
    for sample in samples:
        assert 0 < sum(sample.segment_lengths) <= s
        assert sample.room == s - sum(sample.segment_lengths)
        for segment, learned in zip(sample.tokens, sample.learned, strict=True):
            assert (learned == (segment % 3 > 0)).all()


@given(LENGTHS, st.integers(2, 16), st.integers(1, 8))
def test_segments_are_whole_documents_or_consecutive_cuts(
    lengths: list[int], s: int, open_samples: int
) -> None:
    segments = {
        (int(segment[0]), len(segment))
        for sample in packed(lengths, s, open_samples)
        for segment in sample.tokens
    }
    starts = np.cumsum([0, *lengths])
    expected = {
        (int(first) + cut, min(s, length - cut))
        for first, length in zip(starts, lengths, strict=False)
        for cut in range(0, length, s)
    }
    assert segments == expected


@given(LENGTHS, st.integers(2, 16))
def test_with_enough_open_samples_two_samples_never_fit_into_one(
    lengths: list[int], s: int
) -> None:
    rooms = sorted(sample.room for sample in packed(lengths, s, open_samples=1000))
    used = [s - room for room in rooms if room]
    # Best fit opens a sample only when nothing open has room, so at most one is half empty or more.
    assert sum(tokens <= s // 2 for tokens in used) <= 1


def test_no_more_samples_are_open_than_allowed() -> None:
    packer = Packer(10, open_samples=3, window=1)
    done: list[Sample] = []
    for document in documents([6, 7, 8, 9]):
        done += packer.add(document)
    assert [sample.segment_lengths for sample in done] == [[8]]  # the fullest gives way
    assert [sample.segment_lengths for sample in packer.flush()] == [[6], [7], [9]]


def test_a_segment_goes_where_it_leaves_least_room() -> None:
    samples = packed([5, 7, 3], 10, 8, window=1)
    assert [sample.segment_lengths for sample in samples] == [[7, 3], [5]]


def test_the_longest_of_a_window_come_first() -> None:
    in_order, by_window = (packed([3, 5, 7, 5], 10, 8, window) for window in (1, 4))
    assert [sample.segment_lengths for sample in in_order] == [[3, 5], [7], [5]]
    assert [sample.segment_lengths for sample in by_window] == [[5, 5], [7, 3]]
