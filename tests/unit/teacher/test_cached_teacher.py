"""The cached teacher as a source: what the losses get, threads that read ahead, and bias."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ekd_nemo.errors import DataError
from ekd_nemo.losses.pooling import pool
from ekd_nemo.losses.response import ResponseSettings, fused_linear_response
from ekd_nemo.losses.sparse import SampledTargets, SparseTargets, TopKTargets
from ekd_nemo.teacher.cache.encode import encode_sample
from ekd_nemo.teacher.cache.reader import CacheReader
from ekd_nemo.teacher.cache.source import CachedTeacher, Standing
from ekd_nemo.teacher.cache.sparse_codec import decode_sparse
from ekd_nemo.teacher.source import VALIDATION, TeacherNeeds
from tests.unit.teacher.caches import (
    VOCAB,
    WIDTH,
    dense_of,
    identity,
    logits_of,
    sample_name,
    tokens_of,
    write_cache,
)

LENGTH = 10
DISTRIBUTION = TeacherNeeds(distribution=True)


@dataclass(frozen=True)
class Batch:
    """Two segments in every sample, then padding."""

    numbers: tuple[int, ...]

    @property
    def sample_hashes(self) -> tuple[str, ...]:
        return tuple(sample_name(number) for number in self.numbers)

    @property
    def segment_ids(self) -> Tensor:
        out = torch.full((len(self.numbers), LENGTH), -1)
        for row, number in enumerate(self.numbers):
            out[row, : tokens_of(number)] = (torch.arange(tokens_of(number)) >= 2).long()
        return out

    @property
    def num_segments(self) -> int:
        return 2 * len(self.numbers)

    @property
    def flat_segments(self) -> Tensor:
        first = 2 * torch.arange(len(self.numbers))[:, None]
        ids = torch.where(self.segment_ids >= 0, self.segment_ids + first, -1)
        return ids.T.reshape(-1)

    @property
    def flat_valid(self) -> Tensor:
        """Every other token of what is not padding."""
        odd = torch.arange(LENGTH) % 2 == 1
        return ((self.segment_ids >= 0) & odd).T.reshape(-1)


def open_teacher(
    folder: Path, coming: Iterator[Sequence[str]] | None = None, **standing: Any
) -> CachedTeacher:
    place = Standing(torch.device("cpu"), torch.float32, **standing)
    return CachedTeacher(CacheReader(folder), place, torch.ones(VOCAB, WIDTH), coming)


def test_rows_are_where_the_losses_look_for_them(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", identity())
    batches = [Batch((3, 0)), Batch((5, 2))]
    outputs = open_teacher(tmp_path / "c").outputs(batches, DISTRIBUTION)
    assert outputs.hidden == []
    assert outputs.head is None
    for batch, targets in zip(batches, outputs.targets, strict=True):
        assert isinstance(targets, TopKTargets)
        ids = targets.ids.view(LENGTH, 2, -1)
        for row, number in enumerate(batch.numbers):
            count = tokens_of(number)
            want = torch.softmax(logits_of(number), -1).topk(8).indices.sort(-1).values
            assert torch.equal(ids[:count, row], want)
            assert (ids[count:, row] == -1).all()


def test_hidden_states_layers_and_embeddings(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", identity("hidden"))
    batch = Batch((1, 4))
    needs = TeacherNeeds(distribution=True, layers={1: (0,), 3: (0,)}, pooling="mean", final=True)
    outputs = open_teacher(tmp_path / "c").outputs([batch], needs)
    for row, number in enumerate(batch.numbers):
        count = tokens_of(number)
        parts = [outputs.hidden[0], outputs.layers[1][0], outputs.layers[3][0]]
        for found, want in zip(parts, dense_of(number), strict=True):
            assert found.shape == (LENGTH, 2, WIDTH)
            assert torch.equal(found[:count, row], want)
            assert not found[count:, row].any()
    flat = outputs.hidden[0].reshape(-1, WIDTH)
    assert torch.equal(outputs.embeddings[0], pool(flat, batch.flat_segments, 4, kind="mean"))
    assert outputs.head is not None


@pytest.mark.parametrize("pooling", ["mean", "last", "masked"])
def test_embeddings_are_pooled_from_stored_final_states(tmp_path: Path, pooling: Any) -> None:
    write_cache(tmp_path / "c", identity("hidden"))
    batch = Batch((6, 4))
    needs = TeacherNeeds(pooling=pooling)
    found = open_teacher(tmp_path / "c").outputs([batch], needs).embeddings[0]
    want: list[Tensor] = []
    for number in batch.numbers:
        states = dense_of(number)[0]
        for tokens in (range(2), range(2, len(states))):
            kept = {
                "mean": list(tokens),
                "last": [tokens[-1]],
                "masked": [t for t in tokens if t % 2],
            }
            want.append(states[kept[pooling]].mean(0))
    torch.testing.assert_close(found, torch.stack(want))


def test_stored_embeddings_come_segment_after_segment(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", identity("embeddings"))
    outputs = open_teacher(tmp_path / "c").outputs([Batch((6, 1))], TeacherNeeds(pooling="mean"))
    want = torch.cat([dense_of(6, rows=2)[0], dense_of(1, rows=2)[0]])
    assert torch.equal(outputs.embeddings[0], want)


def test_each_rank_gets_its_stage_and_its_part_of_the_sequence(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", identity("hidden"))
    needs = TeacherNeeds(distribution=True, layers={1: (0,), 3: (1,)})
    first = open_teacher(tmp_path / "c", stage=0, last_stage=False).outputs([Batch((1,))], needs)
    assert (first.hidden, first.head, list(first.layers)) == ([], None, [1])
    halves = [
        open_teacher(tmp_path / "c", stage=1, sequence_rank=rank, sequence_ranks=2)
        .outputs([Batch((1,))], needs)
        .hidden[0]
        for rank in (0, 1)
    ]
    whole = open_teacher(tmp_path / "c", stage=1).outputs([Batch((1,))], needs).hidden[0]
    assert torch.equal(torch.cat(halves), whole)


def test_reading_ahead_changes_nothing(tmp_path: Path) -> None:
    """Steps as foretold, with a validation between them, and a step nobody foretold."""
    write_cache(tmp_path / "c", identity())
    steps = [(0, 1), (2, 3), (4, 5), (6, 7), (1, 0)]
    coming = iter([[sample_name(n) for n in step] for step in steps])
    ahead, plain = open_teacher(tmp_path / "c", coming), open_teacher(tmp_path / "c")
    for step in [(0, 1), (2, 3), (7, 7), (4, 5), (3, 3), (6, 7), (1, 0)]:
        found = ahead.outputs([Batch(step)], DISTRIBUTION).targets[0]
        want = plain.outputs([Batch(step)], DISTRIBUTION).targets[0]
        assert torch.equal(found.ids, want.ids)
        assert torch.equal(found.log_probs, want.log_probs)
    ahead.close()


def test_a_missing_sample_stops_where_it_is_asked_for(tmp_path: Path) -> None:
    write_cache(tmp_path / "c", identity())
    coming = iter([[sample_name(0)], [sample_name(77)]])
    teacher = open_teacher(tmp_path / "c", coming)
    teacher.outputs([Batch((0,))], DISTRIBUTION)
    with pytest.raises(DataError, match=sample_name(77)):
        teacher.outputs([Batch((77,))], DISTRIBUTION)


@pytest.mark.parametrize("kind", ["topk", "sampled"])
def test_validation_asks_nothing_of_a_sparse_cache(kind: str, tmp_path: Path) -> None:
    """It has no use for sparse targets, so the held-out samples need not be there."""
    write_cache(tmp_path / "c", identity(kind))
    outputs = open_teacher(tmp_path / "c").outputs([Batch((77,))], VALIDATION)
    assert (outputs.hidden, outputs.targets, outputs.head) == ([], [], None)


def test_the_cut_of_a_batch_does_not_change_its_loss(tmp_path: Path) -> None:
    """One microbatch of four samples, two of two, four of one; rows of other lengths of top-k."""
    write_cache(tmp_path / "c", identity(k=40, min_probability=2e-3))
    numbers = (3, 0, 6, 5)
    sums: list[float] = []
    for size in (4, 2, 1):
        parts = [numbers[start : start + size] for start in range(0, 4, size)]
        batches = [Batch(part) for part in parts]
        outputs = open_teacher(tmp_path / "c").outputs(batches, DISTRIBUTION)
        sums.append(
            sum(
                float(response(targets, batch)[0])
                for batch, targets in zip(batches, outputs.targets, strict=True)
            )
        )
    np.testing.assert_allclose(sums, sums[0], rtol=1e-6)  # float32 sums in another order


def response(targets: SparseTargets, batch: Batch) -> tuple[Tensor, Tensor]:
    """The response term over all tokens that are not padding, and the gradient of the logits."""
    logits = torch.stack(
        [
            torch.cat([student_of(n), torch.zeros(LENGTH - tokens_of(n), VOCAB)])
            for n in batch.numbers
        ],
        dim=1,
    ).flatten(0, 1)
    hidden = logits.requires_grad_()
    valid = batch.segment_ids.T.reshape(-1) >= 0
    parts = fused_linear_response(
        hidden,
        torch.eye(VOCAB),
        torch.zeros(len(hidden), dtype=torch.int64),
        valid,
        vocab_size=VOCAB,
        teacher_targets=targets,
        settings=ResponseSettings(),
        weight_ce=0.0,
        weight_response=1.0,
    )
    parts.total.backward()
    assert hidden.grad is not None
    return parts.total.detach(), hidden.grad[valid]


def student_of(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(7000 + number)
    return torch.randn(tokens_of(number), VOCAB, generator=generator)


def drawn_gradient(number: int, seed: int, samples: int) -> Tensor:
    """The gradient of the logits from the draws of a cache of one seed, through its payload."""
    who = identity("sampled", seed=seed, samples=samples)
    stored = encode_sample(sample_name(number), tokens_of(number), who, logits=logits_of(number))
    rows = decode_sparse(memoryview(stored.payload), who)
    assert rows.draws is not None
    count = tokens_of(number)
    targets = SampledTargets(
        *(
            torch.cat([values, values.new_full((LENGTH - count, values.shape[1]), fill)])
            for values, fill in (
                (torch.from_numpy(rows.ids), -1),
                (torch.from_numpy(rows.draws).float() / samples, 0),
                (torch.from_numpy(rows.log_probs), 0),
            )
        )
    )
    return response(targets, Batch((number,)))[1]


def dense_gradient(number: int) -> Tensor:
    """softmax(student) - softmax(teacher), [n, V]: the gradient of the forward KL."""
    return torch.softmax(student_of(number), -1) - torch.softmax(logits_of(number), -1).float()


def z_scores(gradients: Tensor, expected: Tensor) -> Tensor:
    """How many standard errors the mean over seeds lies from `expected`, where draws vary at all.

    Only ids that are drawn ten times or more in all: a rare one's mean is not yet normal.
    """
    error = gradients.std(0) / len(gradients) ** 0.5
    often = ((gradients - gradients.max(0).values).abs() > 1e-4).sum(0) >= 10
    return ((gradients.mean(0) - expected) / error)[often & (error > 1e-5)]


@pytest.mark.parametrize("number", [2, 3])
def test_gradients_from_draws_are_unbiased(number: int) -> None:
    """Over 400 seeds the mean gradient is the dense one's: z-scores have mean square 1.

    A few hundred of them: their mean square lies within 0.3 of 1 (systematic draws correlate
    neighbours), and none beyond 5 but by a chance of 1e-4. The same test on the ten likeliest ids,
    normalised again, finds their bias.
    """
    gradients = torch.stack([drawn_gradient(number, seed, 16) for seed in range(400)])
    z = z_scores(gradients, dense_gradient(number))
    assert len(z) > 100
    assert z.square().mean() < 1.3
    assert z.abs().max() < 5
    values, ids = torch.softmax(logits_of(number), -1).topk(10)
    normalised = torch.zeros(tokens_of(number), VOCAB)
    normalised.scatter_(1, ids, (values / values.sum(-1, keepdim=True)).float())
    biased = torch.softmax(student_of(number), -1) - normalised
    shifted = gradients - dense_gradient(number) + biased
    assert z_scores(shifted, dense_gradient(number)).square().mean() > 3
