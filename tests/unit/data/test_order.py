import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.data.order import rank_microbatches, sample_order, samples_at

KNOWN = [5, 6, 3, 7, 4, 1, 2, 0]


@given(st.integers(1, 300), st.integers(0, 2**70), st.integers(0, 50))
def test_an_epoch_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    assert sorted(sample_order(num_samples, seed, epoch)) == list(range(num_samples))


def test_the_order_never_changes() -> None:
    # Known values: a run resumed under another numpy must see the same samples.
    assert sample_order(8, 1234, 0).tolist() == KNOWN
    assert sample_order(8, 1234, 1).tolist() != KNOWN
    assert sample_order(8, 1235, 0).tolist() != KNOWN


@given(
    st.integers(1, 40),
    st.integers(0, 9),
    st.integers(0, 200),
    st.integers(0, 90),
    st.integers(0, 90),
)
def test_the_stream_does_not_depend_on_where_it_is_cut(
    num_samples: int, seed: int, start: int, first: int, second: int
) -> None:
    whole = samples_at(num_samples, seed, start, first + second)
    parts = [
        samples_at(num_samples, seed, start, first),
        samples_at(num_samples, seed, start + first, second),
    ]
    assert whole.tolist() == np.concatenate(parts).tolist()


def test_every_epoch_of_the_stream_holds_every_sample_once() -> None:
    stream = samples_at(7, 3, 0, 28).reshape(4, 7)
    assert all(sorted(epoch) == list(range(7)) for epoch in stream)
    assert len({tuple(epoch) for epoch in stream}) == 4


@pytest.mark.parametrize("dp_size", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_ranks_share_the_batch_without_loss(dp_size: int, micro: int) -> None:
    batch = samples_at(100, 5, 24, 24)
    shares = [rank_microbatches(batch, rank, dp_size, micro) for rank in range(dp_size)]
    assert all(share.shape == (24 // dp_size // micro, micro) for share in shares)
    assert sorted(np.concatenate([s.ravel() for s in shares])) == sorted(batch)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of dp_size 4 \\* micro_batch_size 2"):
        rank_microbatches(np.arange(12), 0, 4, 2)
    with pytest.raises(ValueError, match="at least 1"):
        samples_at(0, 0, 0, 1)
