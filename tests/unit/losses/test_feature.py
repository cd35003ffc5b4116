"""Feature losses, attaching to a hidden state, the layer map and the token subset."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ekd_nemo.config.layer_map import check_layer_map, default_layer_map
from ekd_nemo.errors import ConfigError, LayoutError
from ekd_nemo.losses.attach import attach_loss
from ekd_nemo.losses.feature import feature_loss
from ekd_nemo.losses.subset import token_subset
from tests.unit.losses.references import relative_error

FLOAT64 = 1e-12
# Sums of some dozen float32 numbers, each rounded at 6e-8.
FLOAT32 = 1e-6
KEPT = [0, 6, 10, 11, 16, 18, 19, 23, 29, 30, 36, 37]


def _features(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    student = torch.randn(11, 6, generator=draw, dtype=torch.float64).to(dtype)
    teacher = torch.randn(11, 6, generator=draw, dtype=torch.float64).to(dtype)
    return student, teacher, torch.rand(11, generator=draw) > 0.4


def _reference(kind: str, student: Tensor, teacher: Tensor, keep: Tensor) -> Tensor:
    student, teacher = student[keep].double(), teacher[keep].double()
    if kind == "mse":
        return (student - teacher).pow(2).sum() / student.shape[1]
    norms = student.norm(dim=1) * teacher.norm(dim=1)
    return (1 - (student * teacher).sum(1) / norms).sum()


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
def test_value_and_gradient_equal_the_reference(
    kind: Any, dtype: torch.dtype, bound: float
) -> None:
    """With a projector between unlike widths, outside the loss."""
    _, teacher, keep = _features(dtype)
    narrow = torch.randn(11, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(6, 4, dtype=dtype, generator=torch.Generator().manual_seed(2))
    gradients = []
    for ours in (True, False):
        x, w = narrow.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            parts = feature_loss(x @ w.t(), teacher, keep, kind=kind, scale=0.7)
            total = parts.total
            assert parts.count == keep.sum()
        else:
            x, w = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
            value = _reference(kind, x @ w.t(), teacher, keep)
            total = 0.7 * value
            assert relative_error(parts.sums[f"feature_{kind}"], value.detach()) < bound
        total.backward()
        gradients.append((x.grad, w.grad))
    for actual, expected in zip(*gradients, strict=True):
        assert relative_error(actual, expected) < bound


def test_equal_to_torch() -> None:
    """FitNets' loss is torch's mse_loss; the cosine is torch's embedding loss."""
    student, teacher, keep = _features()
    mse = torch.nn.functional.mse_loss(student[keep], teacher[keep])
    parts = feature_loss(student, teacher, keep)
    torch.testing.assert_close(parts.sums["feature_mse"] / parts.count, mse)
    ones = torch.ones(int(keep.sum()))
    cosine = torch.nn.functional.cosine_embedding_loss(student[keep], teacher[keep], ones)
    parts = feature_loss(student, teacher, keep, kind="cosine")
    torch.testing.assert_close(parts.sums["feature_cosine"] / parts.count, cosine)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_finite_differences(kind: Any) -> None:
    student, teacher, keep = _features()
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: feature_loss(x, teacher, keep, kind=kind).total, (student,)
    )


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_zero_when_equal_and_when_masked(kind: Any) -> None:
    student, teacher, keep = _features()
    student.requires_grad_()
    equal = feature_loss(student, student.detach(), keep, kind=kind)
    assert abs(equal.total.item()) < FLOAT64
    masked = feature_loss(student, teacher * torch.nan, keep & False, kind=kind)
    masked.total.backward()
    assert masked.total == 0
    assert masked.count == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0


def test_masked_tokens_contribute_exactly_nothing() -> None:
    student, teacher, keep = _features()
    student = torch.where(keep[:, None], student, torch.nan).requires_grad_()
    feature_loss(student, teacher, keep).total.backward()
    assert student.grad is not None
    assert student.grad[~keep].abs().max() == 0
    assert student.grad.isfinite().all()


def test_bad_features_are_one_clear_line() -> None:
    student, teacher, keep = _features()
    with pytest.raises(LayoutError, match=r"\(11, 6\), teacher features \(11, 5\).*projector"):
        feature_loss(student, teacher[:, :5], keep)
    with pytest.raises(ConfigError, match="mse, cosine"):
        feature_loss(student, teacher, keep, kind="huber")  # type: ignore[arg-type]


def _stage(weight: Tensor, x: Tensor, teacher: Tensor, keep: Tensor, attach: bool) -> Tensor:
    hidden = torch.tanh(x @ weight)
    if not attach:
        return hidden
    parts = feature_loss(hidden, teacher, keep)
    return attach_loss(hidden, parts.total, scale=lambda: torch.tensor(0.3, dtype=torch.float64))


@pytest.mark.parametrize("recompute", [None, "reentrant", "plain"])
def test_an_attached_loss_trains_its_stage(recompute: str | None) -> None:
    """The gradient of f(hidden) + 0.3 * loss(hidden), though only f's is asked for."""
    x, teacher, keep = _features()
    weights = [torch.eye(6, dtype=torch.float64).requires_grad_() for _ in range(2)]
    hidden = _stage(weights[0], x, teacher, keep, attach=False)
    expected = hidden.pow(3).sum() + 0.3 * _reference("mse", hidden, teacher, keep)
    expected.backward()
    x = x.requires_grad_()  # reentrant checkpoints want an input with a gradient
    if recompute is None:
        out = _stage(weights[1], x, teacher, keep, attach=True)
    else:
        out = checkpoint(
            lambda w, y: _stage(w, y, teacher, keep, attach=True),
            weights[1],
            x,
            use_reentrant=recompute == "reentrant",
        )
    out.pow(3).sum().backward()
    assert torch.equal(out.detach(), hidden.detach())
    assert weights[0].grad is not None
    assert weights[1].grad is not None
    assert relative_error(weights[1].grad, weights[0].grad) < FLOAT64


def test_attaching_needs_a_scalar() -> None:
    with pytest.raises(ValueError, match="accepted: a scalar"):
        attach_loss(torch.zeros(3, requires_grad=True), torch.zeros(2))


def test_default_layer_map() -> None:
    """Same relative depth; the last layers always meet; fewer and more layers than the teacher."""
    assert default_layer_map(30, 10) == [(3 * i, i) for i in range(1, 11)]
    assert default_layer_map(80, 32, 2) == [(40, 16), (80, 32)]
    assert default_layer_map(4, 4) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert default_layer_map(2, 5) == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5)]
    assert default_layer_map(80, 32, 1) == [(80, 32)]
    for num_teacher in range(1, 40):
        for num_student in range(1, 40):
            pairs = default_layer_map(num_teacher, num_student)
            check_layer_map(pairs, num_teacher, num_student)
            assert pairs[-1] == (num_teacher, num_student)
            assert pairs == sorted(pairs)


def test_bad_layer_maps_are_one_clear_line() -> None:
    with pytest.raises(ConfigError, match="33 pairs; accepted: 1 to 32"):
        default_layer_map(80, 32, 33)
    with pytest.raises(ConfigError, match="teacher layer 81; accepted: 1 to 80"):
        check_layer_map([(81, 3)], 80, 32)
    with pytest.raises(ConfigError, match="student layer 0; accepted: 1 to 32"):
        check_layer_map([(1, 0)], 80, 32)
    with pytest.raises(ConfigError, match="stands there twice"):
        check_layer_map([(2, 1), (2, 1)], 80, 32)


def test_token_subset_depends_on_seed_sample_and_position_only() -> None:
    positions = torch.arange(4096)
    whole = token_subset(7, "ab12", positions, 0.25)
    cut = torch.cat([token_subset(7, "ab12", part, 0.25) for part in positions.split(100)])
    assert torch.equal(whole, cut)
    shuffled = torch.randperm(4096, generator=torch.Generator().manual_seed(0))
    assert torch.equal(token_subset(7, "ab12", shuffled, 0.25), whole[shuffled])
    # A smaller ratio keeps a part of what a larger one keeps.
    assert not (token_subset(7, "ab12", positions, 0.1) & ~whole).any()
    assert token_subset(7, "ab12", positions, 1.0).all()


def test_token_subset_is_random_enough() -> None:
    """Share kept and agreement between seeds and samples lie within 5 standard deviations."""
    positions = torch.arange(100_000)
    kept = token_subset(7, "ab12", positions, 0.25)
    deviation = (0.25 * 0.75 / 100_000) ** 0.5
    assert abs(kept.double().mean().item() - 0.25) < 5 * deviation
    for seed, sample in ((8, "ab12"), (7, "ab13")):
        both = kept & token_subset(seed, sample, positions, 0.25)
        assert abs(both.double().mean().item() - 1 / 16) < 5 * (15 / 256 / 100_000) ** 0.5
    neighbours = kept[1:] & kept[:-1]
    assert abs(neighbours.double().mean().item() - 1 / 16) < 8 * (15 / 256 / 100_000) ** 0.5


def test_token_subset_is_what_it_was() -> None:
    """A cache made with one version must be read by the next: the choice is part of the format."""
    kept = token_subset(1234, "00ff", torch.arange(40), 0.25).nonzero().squeeze(1).tolist()
    assert kept == KEPT


def test_a_bad_ratio_is_one_clear_line() -> None:
    for ratio in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="above 0 and at most 1"):
            token_subset(1, "a", torch.arange(3), ratio)
