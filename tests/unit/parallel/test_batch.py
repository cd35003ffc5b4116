"""Attention arguments of packed samples, against pairs written out."""

import pytest
import torch

from ekd_nemo.parallel.batch import Microbatch, _packed

SEGMENTS = [[0, 0, 0, 1, 1, -1], [0, 1, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0]]


@pytest.fixture
def batch() -> Microbatch:
    ids = torch.tensor(SEGMENTS)
    tokens = torch.arange(18).reshape(3, 6)
    hashes = tuple(f"{row:032x}" for row in range(len(ids)))
    return Microbatch(tokens, tokens + 1, tokens % 2 == 0, torch.zeros_like(ids), ids, hashes)


def test_mask_lets_pairs_of_one_segment_see_back(batch: Microbatch) -> None:
    mask = batch.attention["attention_mask"]
    assert mask.shape == (3, 1, 6, 6)
    for row, ids in enumerate(SEGMENTS):
        for query in range(6):
            for key in range(6):
                sees = key <= query and ids[key] == ids[query]
                assert bool(mask[row, 0, query, key]) is not sees


def test_every_token_sees_itself(batch: Microbatch) -> None:
    """Also padding: a row that sees nothing would be nan."""
    assert not batch.attention["attention_mask"].diagonal(dim1=-2, dim2=-1).any()


def test_cumulative_lengths_end_at_segments_and_rows(batch: Microbatch) -> None:
    packed = _packed(batch.segment_ids)
    assert packed.cu_seqlens_q.tolist() == [0, 3, 5, 6, 7, 8, 12, 18]
    assert packed.cu_seqlens_q.dtype == torch.int32
    assert packed.cu_seqlens_kv.tolist() == packed.cu_seqlens_q.tolist()
    assert packed.max_seqlen_q == packed.max_seqlen_kv == 6
    assert packed.qkv_format == "thd"


def test_segment_number_that_repeats_across_rows_is_cut() -> None:
    assert _packed(torch.tensor([[0, 0], [0, 0]])).cu_seqlens_q.tolist() == [0, 2, 4]


def test_flat_order_is_that_of_hidden_states(batch: Microbatch) -> None:
    hidden = batch.labels.transpose(0, 1)[..., None]  # [S, B, H]
    assert torch.equal(batch.flat_labels, hidden.reshape(-1))
    assert torch.equal(batch.flat_valid, batch.loss_mask.transpose(0, 1).reshape(-1))


def test_counts_leave_padding_out(batch: Microbatch) -> None:
    assert int(batch.num_tokens) == 17
    assert int(batch.num_valid) == 9
