"""The fused-linear response loss on one rank: values, gradients, masks, memory, bad input."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ekd_nemo.errors import ConfigError, DataError
from ekd_nemo.losses.response import ResponseSettings, fused_linear_response
from ekd_nemo.losses.vocab import VocabularyMismatchError
from tests.unit.losses.references import Pair, random_pair, relative_error, response_reference

KINDS = ["forward_kl", "reverse_kl", "jsd", "total_variation"]
# float32 rounds at 6e-8; a few dozen sums and two products leave norm-wise errors of about 3e-7.
FLOAT32 = 1e-6
FLOAT64 = 1e-12
# bfloat16 keeps 8 bits: logits, their gradient and the result are each rounded once (2^-9 each,
# the logits' error being multiplied by their size, about 5 here).
BFLOAT16 = 3e-2


def run(pair: Pair, settings: ResponseSettings | None = None, **options: Any) -> tuple[Any, ...]:
    """Forward and backward; gives the parts and both gradients."""
    hidden = pair.hidden.detach().clone().requires_grad_()
    head = pair.head.detach().clone().requires_grad_()
    options = {"weight_response": 1.0, **options}
    parts = fused_linear_response(
        hidden,
        head,
        pair.labels,
        pair.valid,
        teacher_hidden=pair.teacher_hidden,
        teacher_head=pair.teacher_head,
        settings=settings or ResponseSettings(),
        vocab_size=pair.vocab_size,
        **options,
    )
    parts.total.backward()
    return parts, hidden.grad, head.grad


def run_forward(pair: Pair, settings: ResponseSettings) -> Tensor:
    """The total alone."""
    return fused_linear_response(
        pair.hidden,
        pair.head,
        pair.labels,
        pair.valid,
        teacher_hidden=pair.teacher_hidden,
        teacher_head=pair.teacher_head,
        settings=settings,
        weight_response=1.0,
        vocab_size=pair.vocab_size,
    ).total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)])
def test_value_and_gradient_equal_the_reference(
    kind: Any, temperature: float, dtype: torch.dtype, bound: float
) -> None:
    """Every divergence, mixed with cross-entropy and scaled, over several chunks."""
    pair = random_pair().to(dtype)
    options = {"weight_ce": 0.3, "weight_response": 0.7, "scale": 1.7}
    want = response_reference(pair, kind, temperature, 0.3, **options)
    settings = ResponseSettings(kind, temperature, 0.3)
    parts, grad_hidden, grad_head = run(pair, settings, chunk_tokens=4, **options)
    assert relative_error(parts.total, want.total) < bound
    assert relative_error(parts.sums["ce"], want.ce) < bound
    assert relative_error(parts.sums[f"response_{kind}"], want.response) < bound
    assert relative_error(grad_hidden, want.grad_hidden) < bound
    assert relative_error(grad_head, want.grad_head) < bound
    assert parts.count == pair.valid.sum()
    assert parts.total.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_finite_differences(kind: Any, temperature: float) -> None:
    """Independent of any formula: central differences in float64."""
    pair = random_pair(num_tokens=5, width=3, vocab_size=7, padded=8)

    settings = ResponseSettings(kind, temperature)

    def total() -> float:
        with torch.no_grad():
            return run_forward(pair, settings).item()

    _, grad_hidden, grad_head = run(pair, settings, chunk_tokens=2)
    step = 1e-6
    for values, grad in ((pair.hidden, grad_hidden), (pair.head, grad_head)):
        numeric = torch.zeros_like(values)
        for i in range(values.numel()):
            flat = values.view(-1)
            kept = flat[i].item()
            flat[i] = kept + step
            above = total()
            flat[i] = kept - step
            numeric.view(-1)[i] = (above - total()) / (2 * step)
            flat[i] = kept
        # Rounding 1e-16 * |loss| / step leaves about 1e-9; the cut-off is of order step^2.
        assert relative_error(grad, numeric) < 1e-7


def test_forward_kl_equals_torch() -> None:
    """Against torch's own kl_div and cross_entropy."""
    pair = random_pair(padded=23)
    z_s = (pair.hidden @ pair.head.t())[pair.valid]
    z_t = (pair.teacher_hidden @ pair.teacher_head.t())[pair.valid]
    parts, _, _ = run(pair, ResponseSettings(temperature=2.0))
    kl = torch.nn.functional.kl_div(
        (z_s / 2).log_softmax(-1), (z_t / 2).log_softmax(-1), reduction="sum", log_target=True
    )
    ce = torch.nn.functional.cross_entropy(z_s, pair.labels[pair.valid], reduction="sum")
    torch.testing.assert_close(parts.sums["response_forward_kl"], 4 * kl)
    torch.testing.assert_close(parts.sums["ce"], ce)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_when_student_equals_teacher(kind: Any, dtype: torch.dtype) -> None:
    """Exactly zero for KL, whose terms cancel one by one; to rounding for the others."""
    pair = random_pair().to(dtype)
    pair = replace(pair, teacher_hidden=pair.hidden, teacher_head=pair.head)
    parts, grad_hidden, grad_head = run(pair, ResponseSettings(kind, 2.0), weight_ce=0.0)
    bound = 1e-5 if kind == "jsd" else 0.0
    assert abs(parts.sums[f"response_{kind}"].item()) <= bound
    assert grad_hidden.abs().max() <= bound
    assert grad_head.abs().max() <= bound


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_masked(kind: Any) -> None:
    """Zero and finite, even where hidden states and labels are rubbish."""
    pair = random_pair()
    pair = replace(
        pair, valid=torch.zeros_like(pair.valid), hidden=torch.full_like(pair.hidden, torch.nan)
    )
    parts, grad_hidden, grad_head = run(pair, ResponseSettings(kind))
    assert parts.count == 0
    assert parts.total == 0
    assert grad_hidden.abs().max() == 0
    assert grad_head.abs().max() == 0


def test_masked_tokens_contribute_exactly_nothing() -> None:
    """NaN in masked hidden states reaches neither the value nor a gradient."""
    pair = random_pair()
    mask = pair.valid[:, None]
    spoilt = replace(
        pair,
        hidden=torch.where(mask, pair.hidden, torch.nan),
        teacher_hidden=torch.where(mask, pair.teacher_hidden, torch.inf),
    )
    clean, clean_hidden, clean_head = run(pair)
    parts, grad_hidden, grad_head = run(spoilt)
    assert parts.total == clean.total
    assert torch.equal(grad_hidden, clean_hidden)
    assert torch.equal(grad_head, clean_head)
    assert grad_hidden[~pair.valid].abs().max() == 0


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 8, 1000])
def test_chunks_do_not_matter(chunk_tokens: int) -> None:
    """The number of chunks changes nothing beyond the order of sums."""
    pair = random_pair()
    whole, whole_hidden, whole_head = run(pair)
    parts, grad_hidden, grad_head = run(pair, chunk_tokens=chunk_tokens)
    assert relative_error(parts.total, whole.total) < FLOAT64
    assert relative_error(grad_hidden, whole_hidden) < FLOAT64
    assert relative_error(grad_head, whole_head) < FLOAT64


@pytest.mark.parametrize("num_parts", [2, 3, 13])
def test_parts_of_the_batch_add_up(num_parts: int) -> None:
    """Microbatches, data-parallel ranks, context shards: sums of parts are the sum of all."""
    pair = random_pair()
    whole, whole_hidden, whole_head = run(pair)
    total, ce, count = torch.zeros(3, dtype=torch.float64).unbind()
    grads_hidden, grad_head = [], torch.zeros_like(pair.head)
    for rows in torch.arange(13).tensor_split(num_parts):
        part = replace(
            pair,
            hidden=pair.hidden[rows],
            labels=pair.labels[rows],
            valid=pair.valid[rows],
            teacher_hidden=pair.teacher_hidden[rows],
        )
        parts, grad_hidden, grad = run(part)
        total, ce, count = total + parts.total, ce + parts.sums["ce"], count + parts.count
        grads_hidden.append(grad_hidden)
        grad_head += grad
    assert count == whole.count
    assert relative_error(total, whole.total) < FLOAT64
    assert relative_error(ce, whole.sums["ce"]) < FLOAT64
    assert relative_error(torch.cat(grads_hidden), whole_hidden) < FLOAT64
    assert relative_error(grad_head, whole_head) < FLOAT64


def test_autocast_outside_changes_nothing() -> None:
    """Mixed precision around the loss must not reach its products."""
    pair = random_pair().to(torch.float32)
    plain, plain_hidden, _ = run(pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts, grad_hidden, _ = run(pair)
    assert parts.total == plain.total
    assert torch.equal(grad_hidden, plain_hidden)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits_stay_finite(kind: Any) -> None:
    """Logits of size 1e4 in float32: most probabilities are 0, none is lost track of."""
    pair = random_pair().to(torch.float32)
    pair.head.mul_(1e4)
    pair.teacher_head.mul_(1e4)
    parts, grad_hidden, grad_head = run(pair, ResponseSettings(kind, 0.5))
    assert parts.sums[f"response_{kind}"] > 0
    assert parts.total.isfinite()
    assert grad_hidden.isfinite().all()
    assert grad_head.isfinite().all()


def test_memory_bound_sets_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer of logits is larger than the bound allows."""
    seen: list[int] = []
    plain = torch.mm

    def spy(left: Tensor, right: Tensor, **options: Any) -> Tensor:
        if "out" in options:
            seen.append(len(left))
        return plain(left, right, **options)

    monkeypatch.setattr(torch, "mm", spy)
    pair = random_pair(num_tokens=40).to(torch.float32)
    run(pair, memory_bytes=2 * 4 * pair.vocab_size * 5)
    assert max(seen) == 5
    assert sum(seen) == 2 * pair.valid.sum()


def test_padding_gets_no_probability() -> None:
    """Rows beyond the vocabulary change nothing, however loud, and get no gradient."""
    pair = random_pair(vocab_size=23, padded=32)
    loud = replace(pair, head=pair.head.clone(), teacher_head=pair.teacher_head.clone())
    loud.head[23:] = 1e4
    loud.teacher_head[23:] = torch.nan
    want = response_reference(pair)
    parts, grad_hidden, grad_head = run(loud)
    assert relative_error(parts.total, want.total) < FLOAT64
    assert relative_error(grad_hidden, want.grad_hidden) < FLOAT64
    assert relative_error(grad_head, want.grad_head) < FLOAT64
    assert grad_head[23:].abs().max() == 0


def test_paddings_may_differ() -> None:
    """A teacher whose head is padded further than the student's is no mismatch."""
    pair = random_pair(vocab_size=23, padded=24)
    wider = torch.cat([pair.teacher_head, torch.randn(8, 7, dtype=torch.float64)])
    plain, grad_hidden, _ = run(pair)
    parts, other, _ = run(replace(pair, teacher_head=wider))
    assert parts.total == plain.total
    assert torch.equal(grad_hidden, other)


def test_bfloat16_stays_near_float32() -> None:
    """Half-precision inputs; the expected value is float64 on the same rounded inputs."""
    pair = random_pair(num_tokens=64, width=16, vocab_size=101, padded=104).to(torch.bfloat16)
    want = response_reference(pair)
    parts, grad_hidden, grad_head = run(pair, chunk_tokens=17, scale=0.37)
    assert grad_hidden.dtype == grad_head.dtype == torch.bfloat16
    assert relative_error(parts.sums["ce"], want.ce) < BFLOAT16
    assert relative_error(parts.sums["response_forward_kl"], want.response) < BFLOAT16
    assert relative_error(grad_hidden, 0.37 * want.grad_hidden) < BFLOAT16
    assert relative_error(grad_head, 0.37 * want.grad_head) < BFLOAT16


def test_plain_cross_entropy_needs_no_teacher() -> None:
    """Supervised fine-tuning by the same function."""
    pair = random_pair()
    want = response_reference(pair, weight_response=0.0)
    hidden, head = pair.hidden.requires_grad_(), pair.head.requires_grad_()
    parts = fused_linear_response(hidden, head, pair.labels, pair.valid, vocab_size=pair.vocab_size)
    parts.total.backward()
    assert set(parts.sums) == {"ce"}
    assert relative_error(hidden.grad, want.grad_hidden) < FLOAT64
    assert relative_error(head.grad, want.grad_head) < FLOAT64


def test_a_teacher_of_weight_zero_is_measured() -> None:
    """The distance to the teacher is logged while it does not train."""
    pair = random_pair()
    want = response_reference(pair, weight_response=0.0)
    parts, grad_hidden, _ = run(pair, weight_response=0.0)
    assert relative_error(parts.sums["response_forward_kl"], want.response) < FLOAT64
    assert relative_error(grad_hidden, want.grad_hidden) < FLOAT64


def test_nothing_is_kept_without_gradients() -> None:
    """Validation and recomputation: no gradient buffer, the same sums."""
    pair = random_pair()
    head = pair.head.clone().requires_grad_()
    head.main_grad = torch.zeros_like(pair.head)
    with torch.no_grad():
        parts = fused_linear_response(
            pair.hidden.clone().requires_grad_(),
            head,
            pair.labels,
            pair.valid,
            teacher_hidden=pair.teacher_hidden,
            teacher_head=pair.teacher_head,
            weight_response=1.0,
            vocab_size=pair.vocab_size,
            accumulate_into_main_grad=True,
        )
    assert parts.total.grad_fn is None
    assert head.main_grad.abs().max() == 0
    assert relative_error(parts.total, response_reference(pair).total) < FLOAT64


def test_a_frozen_head_gets_no_gradient() -> None:
    """LoRA: only the hidden states carry a gradient."""
    pair = random_pair()
    hidden = pair.hidden.requires_grad_()
    parts = fused_linear_response(
        hidden, pair.head, pair.labels, pair.valid, vocab_size=pair.vocab_size
    )
    parts.total.backward()
    want = response_reference(pair, weight_response=0.0)
    assert relative_error(hidden.grad, want.grad_hidden) < FLOAT64
    assert pair.head.grad is None


def test_tied_embeddings_add_up() -> None:
    """One weight as embedding and head: both uses reach `.grad`."""
    pair = random_pair()
    ids = torch.randint(pair.vocab_size, (13,), generator=torch.Generator().manual_seed(1))
    expected = pair.head.clone().requires_grad_()
    z = expected[ids][pair.valid] @ expected[: pair.vocab_size].t()
    torch.nn.functional.cross_entropy(z, pair.labels[pair.valid], reduction="sum").backward()
    weight = pair.head.clone().requires_grad_()
    fused_linear_response(
        weight[ids], weight, pair.labels, pair.valid, vocab_size=pair.vocab_size
    ).total.backward()
    assert relative_error(weight.grad, expected.grad) < FLOAT64


def _megatron_hook(param: Any) -> None:
    """What DistributedDataParallel does after each backward (megatron-core 0.15.3, line 455)."""
    added = param.grad_added_to_main_grad and not getattr(param, "zero_out_wgrad", False)
    if param.grad is not None and not added:
        param.main_grad.add_(param.grad)
    param.grad = None


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_accumulation_into_main_grad(tied: bool, fused: bool) -> None:
    """Two microbatches, with and without Megatron's fusion, tied and untied: one gradient."""
    pair = random_pair()
    ids = torch.randint(pair.vocab_size, (13,), generator=torch.Generator().manual_seed(1))
    want = pair.head.clone().requires_grad_()
    weight: Any = pair.head.clone().requires_grad_()
    weight.main_grad = torch.zeros_like(pair.head)
    weight.zero_out_wgrad = tied  # as Megatron's LanguageModule sets it for a shared embedding
    for scale in (1.0, 0.5):
        hidden = want[ids] if tied else pair.hidden
        z = hidden[pair.valid] @ want[: pair.vocab_size].t()
        ce = torch.nn.functional.cross_entropy(z, pair.labels[pair.valid], reduction="sum")
        (scale * ce).backward()
        weight.grad_added_to_main_grad = False
        fused_linear_response(
            weight[ids] if tied else pair.hidden,
            weight,
            pair.labels,
            pair.valid,
            vocab_size=pair.vocab_size,
            scale=scale,
            accumulate_into_main_grad=fused,
        ).total.backward()
        assert weight.grad_added_to_main_grad == fused
        _megatron_hook(weight)
    assert relative_error(weight.main_grad, want.grad) < FLOAT64


def test_a_tensor_as_scale() -> None:
    """The loss scale may be a tensor on the device, and reaches the gradients."""
    pair = random_pair()
    want = response_reference(pair, scale=3.0)
    parts, grad_hidden, _ = run(pair, scale=torch.tensor(3.0))
    assert relative_error(grad_hidden, want.grad_hidden) < FLOAT64
    assert relative_error(parts.sums["ce"], want.ce) < FLOAT64


def test_a_second_backward_is_refused() -> None:
    """The gradients have been scaled in place and let go."""
    pair = random_pair()
    hidden = pair.hidden.requires_grad_()
    parts = fused_linear_response(
        hidden, pair.head, pair.labels, pair.valid, vocab_size=pair.vocab_size
    )
    parts.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward ran twice"):
        parts.total.backward()


def test_bad_input_is_one_clear_line() -> None:
    """Settings, shapes, labels and heads that do not fit."""
    pair = random_pair()
    with pytest.raises(ConfigError, match="forward_kl, reverse_kl"):
        ResponseSettings("kl")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperature is 0"):
        ResponseSettings(temperature=0.0)
    with pytest.raises(ConfigError, match="beta is 1"):
        ResponseSettings("jsd", beta=1.0)
    with pytest.raises(DataError, match=r"13 tokens but teacher_hidden 12"):
        run(replace(pair, teacher_hidden=pair.teacher_hidden[1:]))
    with pytest.raises(DataError, match="label 23 at a valid token; accepted: 0 to 22"):
        run(replace(pair, labels=torch.full_like(pair.labels, 23)))
    with pytest.raises(VocabularyMismatchError, match="teacher head: 1 shards of 20 rows"):
        run(replace(pair, teacher_head=pair.teacher_head[:20]))
    with pytest.raises(VocabularyMismatchError, match=r"0\.\.23 and the teacher's 1\.\.23"):
        run(pair, teacher_vocab_offset=1)
    with pytest.raises(ConfigError, match="no main_grad"):
        run(pair, accumulate_into_main_grad=True)
