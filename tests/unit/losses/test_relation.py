"""Relation losses against RKD's own formulas, pooling, packing, two passes, sampling."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ekd_nemo.errors import ConfigError, DataError
from ekd_nemo.losses.pooling import pool
from ekd_nemo.losses.relation import RelationSettings, gradient_of_rows, relation_loss
from ekd_nemo.losses.token_relation import token_relation_loss
from tests.unit.losses.references import relative_error

KINDS = ["distance", "angle", "cosine_gram"]
# Everything is summed in float64; Gram matrices lose a few digits where embeddings are close.
FLOAT64 = 1e-10
FLOAT32 = 1e-6


def _embeddings(num: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student = torch.randn(num, 5, generator=draw, dtype=torch.float64)
    return student, 2 * torch.randn(num, 7, generator=draw, dtype=torch.float64) + 3


def rkd_mean(kind: str, student: Tensor, teacher: Tensor) -> Tensor:
    """RKD's authors' code (github.com/lenscloth/RKD, metric/loss.py), dividing by N^2 or N^3."""

    def distances(e: Tensor) -> Tensor:
        d = (e[:, None] - e[None]).pow(2).sum(2)
        d = torch.where(d > 0, d.clamp(min=1e-300).sqrt(), 0.0)
        return d / d[d > 0].mean()

    def angles(e: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(e[None] - e[:, None], p=2, dim=2)
        return torch.bmm(unit, unit.transpose(1, 2)).view(-1)

    if kind == "cosine_gram":
        s, t = (torch.nn.functional.normalize(e) for e in (student, teacher))
        return (s @ s.t() - t @ t.t()).pow(2).mean()
    ours, theirs = ((distances if kind == "distance" else angles)(e) for e in (student, teacher))
    return torch.nn.functional.smooth_l1_loss(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num", [3, 9, 20])
def test_value_and_gradient_equal_rkd(kind: Any, num: int) -> None:
    """Their mean counts every pair twice and the empty diagonal; ours only what there is."""
    student, teacher = _embeddings(num)
    twin = student.clone().requires_grad_()
    student.requires_grad_()
    parts = relation_loss(student, teacher, RelationSettings(kind), scale=0.4)
    parts.total.backward()
    pairs = num * (num - 1) // 2
    ratio = num**3 / 2 if kind == "angle" else num**2 / 2
    # On RKD's diagonal j = k the cosine is 1 in both models, on i = j it is 0 in both.
    expected = 0.4 * ratio * rkd_mean(kind, twin, teacher)
    expected.backward()
    assert parts.count == (pairs * (num - 2) if kind == "angle" else pairs)
    assert relative_error(parts.total.detach(), expected.detach()) < FLOAT64
    assert relative_error(student.grad, twin.grad) < FLOAT64  # type: ignore[arg-type]
    assert parts.sums[f"relation_{kind}"] * 0.4 == parts.total.detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_are_widened_first(kind: Any, dtype: torch.dtype) -> None:
    """Only the gradient's own rounding is left: 2^-24 and 2^-9 relative."""
    student, teacher = (e.to(dtype) for e in _embeddings())
    wide = student.double().requires_grad_()
    relation_loss(wide, teacher.double(), RelationSettings(kind)).total.backward()
    student.requires_grad_()
    relation_loss(student, teacher, RelationSettings(kind)).total.backward()
    assert student.grad is not None
    assert student.grad.dtype == dtype
    bound = FLOAT32 if dtype == torch.float32 else 4e-3
    assert relative_error(student.grad, wide.grad) < bound  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_finite_differences(kind: Any) -> None:
    student, teacher = _embeddings(6)
    settings = RelationSettings(kind)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: relation_loss(x, teacher, settings).total, (student,))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_when_relations_are_equal(kind: Any) -> None:
    """A turned and (except for cosines to the origin) scaled and moved copy says the same."""
    _, teacher = _embeddings()
    turn = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64)).Q
    student = teacher @ turn
    if kind != "cosine_gram":
        student = 3 * student - 5
    student.requires_grad_()
    parts = relation_loss(student, teacher, RelationSettings(kind))
    parts.total.backward()
    assert student.grad is not None
    assert abs(parts.total.item()) < FLOAT64
    assert student.grad.abs().max() < FLOAT64


@pytest.mark.parametrize("kind", KINDS)
def test_equal_embeddings_stay_finite(kind: Any) -> None:
    """Twins in one batch: distance 0, angle undefined."""
    student, teacher = _embeddings()
    student[3] = student[4]
    student[5:] = 0
    student.requires_grad_()
    parts = relation_loss(student, teacher, RelationSettings(kind))
    parts.total.backward()
    assert parts.total.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_sampled_angles_are_unbiased() -> None:
    """Mean over drawn triplets against the mean over all, within 5 standard errors."""
    student, teacher = _embeddings(20)
    exact = relation_loss(student, teacher, RelationSettings("angle"))
    mean = (exact.total / exact.count).item()
    means = []
    for seed in range(30):
        settings = RelationSettings("angle", max_exact=10, num_triplets=500, seed=seed)
        parts = relation_loss(student, teacher, settings)
        assert parts.count == 500
        means.append(parts.total / parts.count)
    drawn = torch.stack(means)
    assert abs(drawn.mean().item() - mean) < 5 * drawn.std().item() / 30**0.5
    again = relation_loss(student, teacher, settings)
    assert again.total / again.count == drawn[-1]


def test_all_triplets_drawn_are_distinct_and_even(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every (i; j, k) with three distinct numbers comes up about as often as any other."""
    seen: list[Tensor] = []
    from ekd_nemo.losses import relation

    plain = relation._triplet_cosines

    def spy(gram: Tensor, i: Tensor, j: Tensor, k: Tensor) -> Tensor:
        seen.append(torch.stack([i, j, k]))
        return plain(gram, i, j, k)

    monkeypatch.setattr(relation, "_triplet_cosines", spy)
    student, teacher = _embeddings(5)
    relation_loss(student, teacher, RelationSettings("angle", max_exact=4, num_triplets=60_000))
    i, j, k = seen[0]
    assert not ((i == j) | (i == k) | (j == k)).any()
    counts = torch.bincount(25 * i + 5 * j + k, minlength=125)
    assert (counts > 0).sum() == 60
    # 60 cells of 1000 draws each: standard deviation 31.
    assert (counts[counts > 0] - 1000).abs().max() < 6 * 31


def test_two_passes_give_the_gradient_of_one() -> None:
    """Embeddings first, without a graph; then each microbatch against its rows' gradient."""
    draw = torch.Generator().manual_seed(3)
    inputs = torch.randn(8, 4, generator=draw, dtype=torch.float64)
    _, teacher = _embeddings(8)
    settings = RelationSettings("angle")
    weight = torch.randn(4, 5, generator=draw, dtype=torch.float64)
    whole = weight.clone().requires_grad_()
    relation_loss(inputs @ whole, teacher, settings).total.backward()
    cut = weight.clone().requires_grad_()
    embeddings = (inputs @ cut).detach().requires_grad_()
    relation_loss(embeddings, teacher, settings).total.backward()
    assert embeddings.grad is not None
    for rows in torch.arange(8).split(3):
        gradient_of_rows(inputs[rows] @ cut, embeddings.grad[rows]).backward()
    assert relative_error(cut.grad, whole.grad) < FLOAT64  # type: ignore[arg-type]


SEGMENTS = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3, -1, -1])
MASK = torch.tensor([1, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1], dtype=torch.bool)


def test_pooling_in_packed_samples() -> None:
    """By hand; segment 2 is empty, padding is in none, segment 3 has no masked token."""
    hidden = torch.arange(22, dtype=torch.float64).reshape(11, 2)
    mean = pool(hidden, SEGMENTS, 4)
    assert mean[:, 0].tolist() == [2.0, 7.0, 0.0, 13.0]
    last = pool(hidden, SEGMENTS, 4, kind="last")
    assert last[:, 0].tolist() == [4.0, 8.0, 0.0, 16.0]
    masked = pool(hidden, SEGMENTS, 4, kind="masked", mask=MASK)
    assert masked[:, 0].tolist() == [2.0, 8.0, 0.0, 0.0]
    assert mean[:, 1].tolist() == [3.0, 8.0, 0.0, 14.0]


@pytest.mark.parametrize("kind", ["mean", "last", "masked"])
def test_pooling_gradients(kind: Any) -> None:
    hidden = torch.randn(11, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pool(x, SEGMENTS, 4, kind=kind, mask=MASK), (hidden,))


@pytest.mark.parametrize("kind", KINDS)
def test_token_relations_stay_inside_their_segment(kind: Any) -> None:
    """The sum of the segments' own losses; too short segments add nothing."""
    draw = torch.Generator().manual_seed(2)
    student = torch.randn(11, 5, generator=draw, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(11, 6, generator=draw, dtype=torch.float64)
    keep = torch.ones(11, dtype=torch.bool)
    keep[6] = False
    settings = RelationSettings(kind)
    parts = token_relation_loss(student, teacher, SEGMENTS, keep, settings)
    expected, count = torch.zeros((), dtype=torch.float64), 0
    for rows in ([0, 1, 2], [3, 4], [5, 7, 8]):
        if len(rows) > 2 or kind != "angle":
            alone = relation_loss(student[rows], teacher[rows], settings)
            expected, count = expected + alone.total, count + int(alone.count)
    assert parts.count == count
    assert relative_error(parts.total.detach(), expected.detach()) < FLOAT64
    (ours,) = torch.autograd.grad(parts.total, student)
    (theirs,) = torch.autograd.grad(expected, student)
    assert relative_error(ours, theirs) < FLOAT64


def test_no_token_kept_is_zero() -> None:
    student = torch.full((11, 5), torch.nan).requires_grad_()
    keep = torch.zeros(11, dtype=torch.bool)
    parts = token_relation_loss(student, torch.zeros(11, 6), SEGMENTS, keep, RelationSettings())
    parts.total.backward()
    assert parts.total == 0
    assert parts.count == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_bad_relations_are_one_clear_line() -> None:
    student, teacher = _embeddings()
    with pytest.raises(DataError, match=r"distance: 1 sequence.*at least 2"):
        relation_loss(student[:1], teacher[:1])
    with pytest.raises(DataError, match=r"angle: 2 sequence.*at least 3"):
        relation_loss(student[:2], teacher[:2], RelationSettings("angle"))
    with pytest.raises(DataError, match="9 student and 8 teacher"):
        relation_loss(student, teacher[1:])
    with pytest.raises(ConfigError, match="distance, angle, cosine_gram"):
        RelationSettings("gram")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="mean, last, masked"):
        pool(student, SEGMENTS[:9], 4, kind="max")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no mask"):
        pool(student, SEGMENTS[:9], 4, kind="masked")
    with pytest.raises(DataError, match="accepted: equal numbers"):
        token_relation_loss(student, teacher, SEGMENTS, MASK, RelationSettings())


def test_the_gradient_of_distances_is_pdists_and_needs_no_tensor_of_pairs() -> None:
    """Also of equal and of nearly equal embeddings, far from the origin."""
    student, teacher = _embeddings(12)
    student = student + 100.0
    student[3], student[7] = student[2], student[6] + 1e-6
    ours, theirs = (student.clone().requires_grad_() for _ in range(2))
    total = relation_loss(ours, teacher, RelationSettings("distance")).total
    total.backward()
    pairs = [torch.nn.functional.pdist(each) for each in (theirs, teacher)]
    s, t = (each / each[each > 0].mean() for each in pairs)
    torch.nn.functional.smooth_l1_loss(s, t, reduction="sum").backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert relative_error(ours.grad, theirs.grad) < 1e-8  # 1e-6 of 100 leaves eight digits
    assert "PdistBackward0" not in _nodes(total.grad_fn)


def _nodes(node: Any) -> set[str]:
    """Names of the operations behind a result."""
    if node is None:
        return set()
    return {node.name()}.union(*(_nodes(each) for each, _ in node.next_functions))
