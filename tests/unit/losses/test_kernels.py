"""Triton's kernels against torch's operations and float64, and which of them is taken.

Triton reads TRITON_INTERPRET when it is imported: its interpreter runs in a process of its own.
It cuts float32 off to bfloat16 where a GPU rounds, so its error is up to twice as large there.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ekd_nemo.errors import ConfigError
from ekd_nemo.losses.response import ResponseSettings, fused_linear_response
from tests.distributed.ranks import run_ranks
from tests.unit.losses.references import (
    Pair,
    random_pair,
    relative_error,
    response_reference,
    top_k_of,
)
from tests.unit.losses.test_response import BFLOAT16, FLOAT32

KINDS = ("forward_kl", "reverse_kl", "jsd", "total_variation")
WEIGHTS = {"weight_ce": 0.3, "weight_response": 0.7, "scale": 1.7}
# Both paths share their bfloat16 logits; each gradient is rounded or cut off twice, at 8 bits.
HALF_TO_HALF = 2e-2

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def solve(pair: Pair, kernels: str, *, taught: bool = True, **options: Any) -> dict[str, Any]:
    """Values and gradients by name."""
    hidden = pair.hidden.detach().clone().requires_grad_()
    head = pair.head.detach().clone().requires_grad_()
    teacher = {"teacher_hidden": pair.teacher_hidden, "teacher_head": pair.teacher_head}
    parts = fused_linear_response(
        hidden,
        head,
        pair.labels,
        pair.valid,
        vocab_size=pair.vocab_size,
        kernels=kernels,  # type: ignore[arg-type]
        **{**(teacher if taught else {}), **WEIGHTS, **options},
    )
    found: dict[str, Any] = {"total": parts.total.detach(), **parts.sums}
    if torch.is_grad_enabled():
        parts.total.backward()
        found |= {"grad_hidden": hidden.grad, "grad_head": head.grad}
    return found


def gaps(found: dict[str, Any], want: dict[str, Any], bound: float, case: str) -> list[str]:
    """What is further off than it may be."""
    errors = {name: relative_error(found[name], want[name]) for name in want}
    return [f"{case}: {name} off by {gap:.1e}" for name, gap in errors.items() if not gap < bound]


def reference(pair: Pair, settings: ResponseSettings) -> dict[str, Any]:
    want = response_reference(pair, settings.kind, settings.temperature, settings.beta, **WEIGHTS)
    return {"total": want.total, "grad_hidden": want.grad_hidden, "grad_head": want.grad_head}


def _interpreted(rank: int, world_size: int) -> list[str]:
    """Every case on one rank; what is wrong."""
    from ekd_nemo.losses import triton_chunk

    triton_chunk.BLOCK_COLUMNS = 16  # 23 ids are a whole block and a part of one
    wrong: list[str] = []
    pair = random_pair(num_tokens=6).to(torch.float32)
    for kind in KINDS:
        for temperature in (1.0, 2.5):
            settings = ResponseSettings(kind, temperature, 0.3)
            case, options = str(settings), {"settings": settings, "chunk_tokens": 3}
            found = solve(pair, "triton", **options)
            wrong += gaps(found, solve(pair, "torch", **options), FLOAT32, case + " to torch")
            wrong += gaps(found, reference(pair, settings), FLOAT32, case + " to float64")
    half, settings = pair.to(torch.bfloat16), ResponseSettings("jsd", 2.0)
    found = solve(half, "triton", settings=settings)
    wrong += gaps(found, solve(half, "torch", settings=settings), HALF_TO_HALF, "half to torch")
    wrong += gaps(found, reference(half, settings), 2 * BFLOAT16, "half to float64")
    return wrong + _edges(pair)


def _edges(pair: Pair) -> list[str]:
    """No teacher, no gradient, one row, one column, equal models, everything masked, sparse."""
    sparse = {"taught": False, "teacher_targets": top_k_of(pair, 4)}
    one_row = random_pair(num_tokens=1, seed=3).to(torch.float32)
    one_id = random_pair(num_tokens=3, vocab_size=1, padded=1).to(torch.float32)
    cases: dict[str, tuple[Pair, dict[str, Any]]] = {
        "cross-entropy": (pair, {"taught": False}),
        "one row": (one_row, {"settings": ResponseSettings("total_variation")}),
        "one id": (one_id, {"settings": ResponseSettings("reverse_kl")}),
        "top-k": (pair, sparse),
    }
    wrong: list[str] = []
    for case, (each, options) in cases.items():
        want = solve(each, "torch", **options)
        wrong += gaps(solve(each, "triton", **options), want, FLOAT32, case)
    with torch.no_grad():
        for kind in ("forward_kl", "jsd"):
            options = {"settings": ResponseSettings(kind)}
            want = solve(pair, "torch", **options)
            wrong += gaps(solve(pair, "triton", **options), want, FLOAT32, "no gradient")
    equal = replace(pair, teacher_hidden=pair.hidden, teacher_head=pair.head)
    masked = replace(pair, valid=torch.zeros_like(pair.valid))
    for case, each in {"equal": equal, "masked": masked}.items():
        found = solve(each, "triton", weight_ce=0.0)
        sizes = [found[name].abs().max().item() for name in ("grad_hidden", "grad_head", "total")]
        wrong += [f"{case}: {sizes}"] if any(sizes) else []
    return wrong


@needs_triton
def test_kernels_give_torchs_value_and_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run_ranks(_interpreted, 1, tmp_path) == [[]]


# Kind, whether values are made, whether the gradient is; each is a kernel of its own.
VARIANTS = [
    ("forward_kl", True, True),
    ("jsd", False, True),
    *(
        pytest.param(*variant, marks=pytest.mark.slow)
        for variant in (
            ("none", False, True),
            ("forward_kl", True, False),
            ("jsd", True, False),
            ("reverse_kl", True, False),
            ("reverse_kl", False, True),
            ("total_variation", True, False),
            ("total_variation", False, True),
        )
    ),
]


@needs_triton
@pytest.mark.parametrize(("kind", "values", "gradient"), VARIANTS)
def test_kernels_compile_for_an_h100(
    kind: str, values: bool, gradient: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the interpreter does not see: types, registers, and loads of 16 bytes a thread."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    from ekd_nemo.losses import triton_chunk, triton_kernels

    block = triton_chunk.BLOCK_COLUMNS
    options = {"KIND": kind, "UNSCALED": False, "VALUES": values, "GRADIENT": gradient}
    ptx = compiled(triton_kernels.response_kernel, {**options, "BLOCK": block})
    assert "ld.global.v4" in ptx
    assert ("st.global.v4" in ptx) == gradient
    if kind == "forward_kl" and gradient:
        sums = compiled(triton_kernels.max_and_sums_kernel, {"TWO": True, "BLOCK": block})
        assert "ld.global.v4" in sums


def compiled(kernel: Any, constants: dict[str, Any]) -> str:
    """PTX of a kernel over bfloat16 logits whose rows begin at multiples of 16 bytes."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    types = {"z_ptr": "*bf16", "z_s_ptr": "*bf16", "z_t_ptr": "*bf16", "ids_ptr": "*i64"}
    sizes = ("num_columns", "stride", "stride_s", "stride_t")
    signature: dict[str, str] = {}
    for name in kernel.arg_names:
        pointer = "*fp32" if name.endswith("_ptr") else "fp32"
        number = "i32" if name in (*sizes, "num_blocks") else pointer
        signature[name] = "constexpr" if name in constants else types.get(name, number)
    aligned = [
        i for i, (name, kind) in enumerate(signature.items()) if "*" in kind or name in sizes
    ]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["ptx"]


def _loaded_by_torchs_path(rank: int, world_size: int) -> list[str]:
    before = set(sys.modules)
    solve(random_pair().to(torch.float32), "torch")
    solve(random_pair(), "triton")  # float64
    return sorted({name.partition(".")[0] for name in set(sys.modules) - before} & {"triton"})


def test_float64_is_torchs_and_torchs_path_loads_no_triton(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert run_ranks(_loaded_by_torchs_path, 1, tmp_path) == [[]]


def test_kernels_that_cannot_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pair = random_pair().to(torch.float32)
    with pytest.raises(ConfigError, match="needs a CUDA device, this is cpu; accepted: torch"):
        solve(pair, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed here; accepted: torch"):
        solve(pair, "triton")
