"""The response loss with the vocabulary and the sequence sharded: TP 1 = 2 = 3 = 4."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ekd_nemo.errors import EkdError
from ekd_nemo.losses.chunk import Kernels
from ekd_nemo.losses.response import ResponseSettings, fused_linear_response
from ekd_nemo.losses.sparse import SparseTargets
from ekd_nemo.losses.vocab import VocabularyMismatchError
from tests.distributed.ranks import run_ranks
from tests.unit.losses.references import (
    Expected,
    Pair,
    random_pair,
    relative_error,
    response_reference,
    samples_of,
    sparse_reference,
    top_k_of,
)
from tests.unit.losses.test_kernels import needs_triton

KINDS = ("forward_kl", "reverse_kl", "jsd", "total_variation")
# float32 rounds at 6e-8; a few dozen sums and two products leave norm-wise errors of about 3e-7.
FLOAT32 = 1e-6
FLOAT64 = 1e-12
WEIGHTS = {"weight_ce": 0.3, "weight_response": 0.7, "scale": 1.7}
NUM_TOKENS = 24  # divides by 2, 3 and 4: sequence parallelism cuts equal shards


def _pair(padded: int) -> Pair:
    return random_pair(num_tokens=NUM_TOKENS, vocab_size=23, padded=padded)


def _uneven(rank: int, world_size: int) -> tuple[int, int]:
    """Cut 23 ids so that the first rank has 5, the last whatever is left."""
    edges = [0, *(5 + i for i in range(world_size - 1)), 23]
    return edges[rank], edges[rank + 1]


def _shard(rank: int, world_size: int, padded: int, uneven: bool) -> tuple[int, int]:
    if uneven:
        return _uneven(rank, world_size)
    return rank * padded // world_size, (rank + 1) * padded // world_size


def _solve(
    rank: int,
    world_size: int,
    pair: Pair,
    settings: ResponseSettings,
    sequence_parallel: bool,
    uneven: bool,
    targets: SparseTargets | None = None,
    kernels: Kernels = "torch",
) -> tuple[Any, torch.Tensor, torch.Tensor, tuple[int, int]]:
    start, stop = _shard(rank, world_size, len(pair.head), uneven)
    part = NUM_TOKENS // world_size
    mine = slice(rank * part, (rank + 1) * part) if sequence_parallel else slice(None)
    hidden = pair.hidden[mine].clone().requires_grad_()
    head = pair.head[start:stop].clone().requires_grad_()
    parts = fused_linear_response(
        hidden,
        head,
        pair.labels,
        pair.valid,
        teacher_hidden=None if targets else pair.teacher_hidden[mine],
        teacher_head=None if targets else pair.teacher_head[start:stop],
        teacher_targets=targets,
        settings=settings,
        vocab_size=pair.vocab_size,
        tp_group=dist.group.WORLD,
        vocab_offset=start if uneven else None,
        teacher_vocab_offset=start if uneven else None,
        sequence_parallel=sequence_parallel,
        teacher_sequence_parallel=sequence_parallel,
        chunk_tokens=5,
        kernels=kernels,
        **WEIGHTS,
    )
    parts.total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    grad_hidden = hidden.grad
    if sequence_parallel:
        whole = [torch.empty_like(grad_hidden) for _ in range(world_size)]
        dist.all_gather(whole, grad_hidden)
        grad_hidden = torch.cat(whole)
    return parts, grad_hidden, head.grad, (start, stop)


def _check(outcome: Any, want: Expected, kind: str, bound: float) -> list[str]:
    parts, grad_hidden, grad_head, (start, stop) = outcome
    # A rank's own rows against the whole gradient's size: a shard of padding has no norm.
    shard_gap = (grad_head.double() - want.grad_head[start:stop]).norm() / want.grad_head.norm()
    gaps = {
        "total": relative_error(parts.total, want.total),
        "ce": relative_error(parts.sums["ce"], want.ce),
        "response": relative_error(parts.sums[f"response_{kind}"], want.response),
        "grad_hidden": relative_error(grad_hidden, want.grad_hidden),
        "grad_head": shard_gap.item(),
    }
    return [f"{name} off by {gap:.2e}" for name, gap in gaps.items() if not gap < bound]


def _all_options(rank: int, world_size: int) -> list[str]:
    """Dense teachers: try every option on this number of ranks; return what is wrong."""
    wrong: list[str] = []
    # 72 rows on 4 ranks: 18 a rank, so that one rank is part padding and two are padding only.
    for padded, uneven in ((24, False), (72, False), (23, True)):
        pair = _pair(padded)
        types = ((1.0, torch.float32, FLOAT32), (2.5, torch.float64, FLOAT64))
        for kind, (temperature, dtype, bound) in itertools.product(KINDS, types):
            cast = pair.to(dtype)
            settings = ResponseSettings(kind, temperature, 0.3)
            want = response_reference(cast, kind, temperature, 0.3, **WEIGHTS)
            for sequence_parallel in (False, True):
                outcome = _solve(rank, world_size, cast, settings, sequence_parallel, uneven)
                case = f"{padded=} {uneven=} {settings} {sequence_parallel=} {dtype}: "
                wrong += [case + w for w in _check(outcome, want, kind, bound)]
    return wrong


def _sparse_options(rank: int, world_size: int) -> list[str]:
    """Top-k of every divergence and samples; the last ranks of 72 rows hold no listed id."""
    wrong: list[str] = []
    for padded, uneven in ((24, False), (72, False), (23, True)):
        pair = _pair(padded)
        top_k, samples = top_k_of(pair, 5, 2.0), samples_of(pair, 40, 3, 2.0)
        cases = [(kind, top_k) for kind in KINDS] + [("forward_kl", samples)]
        for sequence_parallel, (kind, targets) in itertools.product((False, True), cases):
            settings = ResponseSettings(kind, 2.0, 0.3)
            want = sparse_reference(pair, targets, kind, 2.0, 0.3, **WEIGHTS)
            outcome = _solve(rank, world_size, pair, settings, sequence_parallel, uneven, targets)
            case = f"{padded=} {uneven=} {settings} {targets.suffix} {sequence_parallel=}: "
            wrong += [case + w for w in _check(outcome, want, kind + targets.suffix, FLOAT64)]
    return wrong


def _everything(rank: int, world_size: int) -> list[str]:
    return _all_options(rank, world_size) + _sparse_options(rank, world_size)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_shards_give_the_single_process_value_and_gradient(world_size: int, tmp_path: Path) -> None:
    """All divergences and teachers, paddings, uneven shards, sequence parallelism, both types."""
    for wrong in run_ranks(_everything, world_size, tmp_path):
        assert wrong == []


def _triton_options(rank: int, world_size: int) -> list[str]:
    """Triton's kernels in its interpreter, which is slow: each divergence once a padding."""
    wrong: list[str] = []
    # 48 rows on 2 ranks: the second holds padding only, and takes part in every sum.
    for padded, temperature in ((24, 2.5), (48, 1.0)):
        pair = _pair(padded).to(torch.float32)
        for kind in KINDS:
            settings = ResponseSettings(kind, temperature, 0.3)
            want = response_reference(pair, kind, temperature, 0.3, **WEIGHTS)
            sequence_parallel = kind == "jsd"
            outcome = _solve(
                rank, world_size, pair, settings, sequence_parallel, False, kernels="triton"
            )
            wrong += [f"{padded=} {settings}: {w}" for w in _check(outcome, want, kind, FLOAT32)]
    return wrong


@needs_triton
def test_tritons_kernels_on_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for wrong in run_ranks(_triton_options, 2, tmp_path):
        assert wrong == []


def _special_cases(rank: int, world_size: int) -> tuple[list[float], str]:
    """Masked, equal, bfloat16: largest gradient or error each; and what is refused."""
    pair = _pair(24)
    settings = ResponseSettings()
    masked = Pair(**{**vars(pair), "valid": torch.zeros_like(pair.valid)})
    parts, grad_hidden, grad_head, _ = _solve(rank, world_size, masked, settings, True, False)
    results = [float(max(parts.total.abs(), grad_hidden.abs().max(), grad_head.abs().max()))]
    same = {"teacher_hidden": pair.hidden, "teacher_head": pair.head}
    equal = Pair(**{**vars(pair), **same})
    parts, _, _, _ = _solve(rank, world_size, equal, settings, False, False)
    results.append(parts.sums["response_forward_kl"].item())
    half = pair.to(torch.bfloat16)
    want = response_reference(half, **WEIGHTS)
    _, grad_hidden, _, _ = _solve(rank, world_size, half, settings, True, False)
    results.append(relative_error(grad_hidden, want.grad_hidden))
    return results, _mismatched_teacher(rank, world_size)


def test_masked_equal_half_precision_and_refused(tmp_path: Path) -> None:
    """All masked: 0. Student equals teacher: 0. bfloat16: bounded. Unlike shards: refused."""
    for (masked, equal, half), message in run_ranks(_special_cases, 2, tmp_path):
        assert masked == 0
        assert equal == 0
        # Logits of size about 5 rounded to 8 bits, then the gradient's own rounding.
        assert half < 3e-2
        # 24 rows cut in two hold ids 0..12, 28 hold 0..14: no rank may go on.
        assert "cut alike" in message


def _mismatched_teacher(rank: int, world_size: int) -> str:
    pair = _pair(24)
    part, wider = 24 // world_size, 28 // world_size
    teacher_head = torch.cat([pair.teacher_head, torch.zeros(4, 7, dtype=torch.float64)])
    try:
        fused_linear_response(
            pair.hidden,
            pair.head[rank * part : (rank + 1) * part],
            pair.labels,
            pair.valid,
            teacher_hidden=pair.teacher_hidden,
            teacher_head=teacher_head[rank * wider : (rank + 1) * wider],
            vocab_size=pair.vocab_size,
            tp_group=dist.group.WORLD,
        )
    except VocabularyMismatchError as error:
        return str(error)
    except EkdError as error:
        return f"another error: {error}"
    return "no error"
