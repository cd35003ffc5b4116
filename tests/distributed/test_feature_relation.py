"""Feature and relation losses with tokens and sequences spread over ranks: as in one process."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ekd_nemo.losses.collectives import gather_rows_with_gradient
from ekd_nemo.losses.feature import feature_loss
from ekd_nemo.losses.pooling import POOLINGS, pool
from ekd_nemo.losses.relation import LEAST, RelationSettings, gradient_of_rows, relation_loss
from ekd_nemo.losses.subset import token_subset
from ekd_nemo.losses.token_relation import token_relation_loss
from tests.distributed.ranks import run_ranks
from tests.unit.losses.references import relative_error

# float64 throughout: what is left are sums in another order.
BOUND = 1e-10
NUM_TOKENS = 24
# Segment 1 crosses the middle, 3 lies in the last quarter, 4 is padding-only: an empty row.
SEGMENTS = torch.tensor([0] * 5 + [1] * 10 + [2] * 4 + [3] * 3 + [-1] * 2)
NUM_SEGMENTS = 5


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _mine(rank: int, world_size: int) -> slice:
    part = NUM_TOKENS // world_size
    return slice(rank * part, (rank + 1) * part)


def _whole(grad: Tensor | None) -> Tensor:
    """Join the ranks' own rows of a gradient."""
    assert grad is not None
    parts = [torch.empty_like(grad) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, grad)
    return torch.cat(parts)


def _features(rank: int, world_size: int) -> list[str]:
    """Sequence parallelism: own tokens, one projector whose gradient the caller sums."""
    wrong: list[str] = []
    hidden, teacher, weight = _draw(24, 4, seed=1), _draw(24, 6, seed=2), _draw(4, 6, seed=3)
    positions = torch.arange(NUM_TOKENS)
    keep = (SEGMENTS >= 0) & token_subset(1, "ff", positions, 0.5)
    rows = _mine(rank, world_size)
    for kind in ("mse", "cosine"):
        x, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        want = feature_loss(x @ w, teacher, keep, kind=kind, scale=0.3)
        want.total.backward()
        y, v = hidden[rows].clone().requires_grad_(), weight.clone().requires_grad_()
        subset = (SEGMENTS[rows] >= 0) & token_subset(1, "ff", positions[rows], 0.5)
        parts = feature_loss(
            y @ v, teacher[rows], subset, kind=kind, scale=0.3, sequence_group=dist.group.WORLD
        )
        parts.total.backward()
        assert v.grad is not None
        dist.all_reduce(v.grad)
        name = f"feature_{kind}"
        gaps = {
            "total": relative_error(parts.total.detach(), want.total.detach()),
            "sum": relative_error(parts.sums[name], want.sums[name]),
            "count": abs(float(parts.count - want.count)),
            "hidden": relative_error(_whole(y.grad), x.grad),  # type: ignore[arg-type]
            "projector": relative_error(v.grad, w.grad),  # type: ignore[arg-type]
        }
        wrong += [f"{name} {what}: {gap:.1e}" for what, gap in gaps.items() if not gap < BOUND]
    return wrong


def _pooled_relations(rank: int, world_size: int) -> list[str]:
    """Tokens of each sequence spread over the ranks."""
    wrong: list[str] = []
    hidden, teacher = _draw(24, 4, seed=1), _draw(4, 6, seed=2)
    mask = token_subset(3, "aa", torch.arange(NUM_TOKENS), 0.7)
    rows = _mine(rank, world_size)
    for kind, pooling in itertools.product(LEAST, POOLINGS):
        settings = RelationSettings(kind)
        x, y = hidden.clone().requires_grad_(), hidden[rows].clone().requires_grad_()
        whole = pool(x, SEGMENTS, NUM_SEGMENTS, kind=pooling, mask=mask)
        want = relation_loss(whole[:4], teacher, settings)
        want.total.backward()
        pooled = pool(
            y,
            SEGMENTS[rows],
            NUM_SEGMENTS,
            kind=pooling,
            mask=mask[rows],
            first_position=rows.start,
            sequence_group=dist.group.WORLD,
        )
        parts = relation_loss(pooled[:4], teacher, settings)
        parts.total.backward()
        gap = relative_error(_whole(y.grad), x.grad)  # type: ignore[arg-type]
        if not (gap < BOUND and relative_error(parts.total, want.total) < BOUND):
            wrong.append(f"{kind} {pooling}: {gap:.1e}")
    return wrong


def _token_relations(rank: int, world_size: int) -> list[str]:
    """Relations between tokens that live on different ranks."""
    wrong: list[str] = []
    hidden, teacher = _draw(24, 4, seed=1), _draw(24, 6, seed=2)
    keep = token_subset(3, "aa", torch.arange(NUM_TOKENS), 0.7)
    rows = _mine(rank, world_size)
    for kind in LEAST:
        settings = RelationSettings(kind)
        x, y = hidden.clone().requires_grad_(), hidden[rows].clone().requires_grad_()
        want = token_relation_loss(x, teacher, SEGMENTS, keep, settings)
        want.total.backward()
        parts = token_relation_loss(
            y,
            teacher[rows],
            SEGMENTS[rows],
            keep[rows],
            settings,
            sequence_group=dist.group.WORLD,
        )
        parts.total.backward()
        gap = relative_error(_whole(y.grad), x.grad)  # type: ignore[arg-type]
        if not (gap < BOUND and parts.count == want.count):
            wrong.append(f"token {kind}: {gap:.1e}")
    return wrong


def _global_batch(rank: int, world_size: int) -> list[str]:
    """Data parallelism, unlike numbers of sequences a rank, two microbatches, two passes.

    Every rank computes the loss of the whole batch, so its weights' gradient is its own rows'
    part, and the sum over ranks (as data parallelism makes it) is the whole.
    """
    wrong: list[str] = []
    inputs, teacher, weight = _draw(12, 4, seed=4), _draw(12, 6, seed=5), _draw(4, 5, seed=6)
    edges = [0, *(2 * i + 1 for i in range(1, world_size)), 12]
    rows = torch.arange(edges[rank], edges[rank + 1])
    for kind in LEAST:
        settings = RelationSettings(kind)
        w = weight.clone().requires_grad_()
        want = relation_loss(inputs @ w, teacher, settings)
        want.total.backward()
        v = weight.clone().requires_grad_()
        first = (inputs[rows] @ v).detach().requires_grad_()
        gathered, _ = gather_rows_with_gradient(first, dist.group.WORLD)
        taught, _ = gather_rows_with_gradient(teacher[rows], dist.group.WORLD)
        parts = relation_loss(gathered, taught, settings)
        parts.total.backward()
        assert first.grad is not None
        for own in torch.arange(len(rows)).split(2):
            gradient_of_rows(inputs[rows[own]] @ v, first.grad[own]).backward()
        assert v.grad is not None
        dist.all_reduce(v.grad)
        gap = relative_error(v.grad, w.grad)  # type: ignore[arg-type]
        if not (gap < BOUND and parts.total == want.total):
            wrong.append(f"global {kind}: {gap:.1e}")
    return wrong


def _everything(rank: int, world_size: int) -> list[str]:
    return [
        *_features(rank, world_size),
        *_pooled_relations(rank, world_size),
        *_token_relations(rank, world_size),
        *_global_batch(rank, world_size),
    ]


@pytest.mark.parametrize("world_size", [2, 4])
def test_shards_give_the_single_process_value_and_gradient(world_size: int, tmp_path: Path) -> None:
    """Every kind and pooling, over tokens and over sequences."""
    for wrong in run_ranks(_everything, world_size, tmp_path):
        assert wrong == []
