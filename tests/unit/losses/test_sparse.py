"""Top-k with a tail bucket and sampled ids: values, gradients, bias, edges, bad input."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ekd_nemo.errors import ConfigError, DataError
from ekd_nemo.losses.parts import LossParts
from ekd_nemo.losses.response import ResponseSettings, fused_linear_response
from ekd_nemo.losses.sparse import SampledTargets, SparseTargets, TopKTargets
from tests.unit.losses.references import (
    Pair,
    random_pair,
    relative_error,
    response_reference,
    samples_of,
    sparse_reference,
    top_k_of,
)

KINDS = ["forward_kl", "reverse_kl", "jsd", "total_variation"]
# As in test_response.py.
FLOAT32 = 1e-6
FLOAT64 = 1e-12


def run(
    pair: Pair, targets: SparseTargets, settings: ResponseSettings | None = None, **options: Any
) -> tuple[LossParts, Tensor, Tensor]:
    """Forward and backward."""
    hidden = pair.hidden.detach().clone().requires_grad_()
    head = pair.head.detach().clone().requires_grad_()
    parts = fused_linear_response(
        hidden,
        head,
        pair.labels,
        pair.valid,
        teacher_targets=targets,
        settings=settings or ResponseSettings(),
        vocab_size=pair.vocab_size,
        **{"weight_response": 1.0, **options},
    )
    parts.total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return parts, hidden.grad, head.grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
def test_top_k_equals_the_reference(
    kind: Any, temperature: float, dtype: torch.dtype, bound: float
) -> None:
    pair = random_pair().to(dtype)
    targets = top_k_of(pair, 5, temperature)
    options = {"weight_ce": 0.3, "weight_response": 0.7, "scale": 1.7}
    want = sparse_reference(pair, targets, kind, temperature, 0.3, **options)
    settings = ResponseSettings(kind, temperature, 0.3)
    parts, grad_hidden, grad_head = run(pair, targets, settings, chunk_tokens=4, **options)
    assert relative_error(parts.total, want.total) < bound
    assert relative_error(parts.sums[f"response_{kind}_topk"], want.response) < bound
    assert relative_error(grad_hidden, want.grad_hidden) < bound
    assert relative_error(grad_head, want.grad_head) < bound


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_one_id_listed_is_the_dense_divergence(kind: Any) -> None:
    """With one id in the tail no information is lost."""
    pair = random_pair()
    want = response_reference(pair, kind)
    settings = ResponseSettings(kind)
    parts, grad_hidden, grad_head = run(pair, top_k_of(pair, pair.vocab_size - 1), settings)
    # The tail's mass is 1 - sum, so it carries an absolute error of 1e-16 on as little as 1e-4.
    assert relative_error(parts.sums[f"response_{kind}_topk"], want.response) < 1e-10
    assert relative_error(grad_hidden, want.grad_hidden) < 1e-10
    assert relative_error(grad_head, want.grad_head) < 1e-10


def test_top_k_is_a_lower_bound_that_grows_with_k() -> None:
    """Merging ids into the tail can only lose divergence."""
    pair = random_pair()
    values = [
        run(pair, top_k_of(pair, k))[0].sums["response_forward_kl_topk"].item()
        for k in (1, 2, 4, 8, 16, 22)
    ]
    assert values == sorted(values)
    assert values[0] > 0


def test_absent_entries_count_for_nothing() -> None:
    """-1 pads a list: the same as the shorter list, whatever stands in its log-probability."""
    pair = random_pair()
    short = top_k_of(pair, 4)
    gap = torch.full((len(pair.labels), 2), -1)
    padded = TopKTargets(
        torch.cat([short.ids, gap], 1),
        torch.cat([short.log_probs, torch.full(gap.shape, torch.nan, dtype=torch.float64)], 1),
    )
    want, want_hidden, _ = run(pair, short)
    parts, grad_hidden, _ = run(pair, padded)
    assert relative_error(parts.total, want.total) < FLOAT64
    assert relative_error(grad_hidden, want_hidden) < FLOAT64


def test_a_teacher_without_tail_stays_finite() -> None:
    """All the mass in k ids, and a student that gives those almost none."""
    pair = random_pair().to(torch.float32)
    pair.head[:4] = -40.0 * pair.hidden[pair.valid][0] / pair.hidden[pair.valid][0].norm() ** 2
    ids = torch.arange(4).expand(len(pair.labels), 4).contiguous()
    targets = TopKTargets(ids, torch.full(ids.shape, 0.25).log())
    for kind in KINDS:
        parts, grad_hidden, grad_head = run(pair, targets, ResponseSettings(kind))  # type: ignore[arg-type]
        assert parts.total.isfinite()
        assert grad_hidden.isfinite().all()
        assert grad_head.isfinite().all()


def test_zero_when_the_student_equals_the_teacher() -> None:
    pair = random_pair()
    same = Pair(**{**vars(pair), "teacher_hidden": pair.hidden, "teacher_head": pair.head})
    for kind in KINDS:
        settings = ResponseSettings(kind)  # type: ignore[arg-type]
        parts, grad_hidden, _ = run(same, top_k_of(same, 5), settings, weight_ce=0.0)
        assert abs(parts.total.item()) < FLOAT64
        if kind != "total_variation":  # which has a kink there: rounding picks a side
            assert grad_hidden.abs().max() < FLOAT64


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
def test_samples_equal_the_reference(temperature: float, dtype: torch.dtype, bound: float) -> None:
    """Repeated ids included: 40 draws from 23 ids."""
    pair = random_pair().to(dtype)
    targets = samples_of(pair, 20, seed=3, temperature=temperature)
    targets = SampledTargets(
        torch.cat([targets.ids] * 2, 1),
        torch.cat([targets.weights, 0.3 * targets.weights], 1),
        torch.cat([targets.log_probs] * 2, 1),
    )
    want = sparse_reference(pair, targets, temperature=temperature)
    settings = ResponseSettings(temperature=temperature)
    parts, grad_hidden, grad_head = run(pair, targets, settings, chunk_tokens=3)
    assert relative_error(parts.sums["response_forward_kl_sampled"], want.response) < bound
    assert relative_error(grad_hidden, want.grad_hidden) < bound
    assert relative_error(grad_head, want.grad_head) < bound


def test_samples_are_unbiased() -> None:
    """Every id once, weighted by its probability: the expectation, which must be the dense KL."""
    pair = random_pair()
    log_p = (pair.teacher_hidden @ pair.teacher_head[: pair.vocab_size].t()).log_softmax(-1)
    ids = torch.arange(pair.vocab_size).expand(log_p.shape).contiguous()
    want = response_reference(pair)
    parts, grad_hidden, grad_head = run(pair, SampledTargets(ids, log_p.exp(), log_p))
    assert relative_error(parts.total, want.total) < FLOAT64
    assert relative_error(grad_hidden, want.grad_hidden) < FLOAT64
    assert relative_error(grad_head, want.grad_head) < FLOAT64


def test_bad_targets_are_one_clear_line() -> None:
    pair = random_pair()
    good = top_k_of(pair, 3)
    with pytest.raises(DataError, match="accepted: all"):
        run(pair, TopKTargets(good.ids, good.log_probs[:, :2]))
    with pytest.raises(DataError, match="id outside 0 to 22"):
        run(pair, TopKTargets(good.ids + 23, good.log_probs))
    with pytest.raises(DataError, match="same id twice"):
        run(pair, TopKTargets(good.ids * 0, good.log_probs))
    with pytest.raises(DataError, match="mass of"):
        run(pair, TopKTargets(good.ids, good.log_probs * 0))
    with pytest.raises(ConfigError, match="accepted: forward_kl"):
        run(pair, samples_of(pair, 3, 0), ResponseSettings("jsd"))
    with pytest.raises(DataError, match="in place of"):
        run(pair, good, teacher_hidden=pair.teacher_hidden)
