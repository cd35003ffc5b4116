"""The response loss on a GPU, by torch's operations and Triton's kernels, against the float64 reference on the CPU."""

from typing import Any

import pytest
import torch

from ekd_nemo.losses.chunk import Kernels
from ekd_nemo.losses.response import ResponseSettings, fused_linear_response
from tests.unit.losses.references import Pair, random_pair, relative_error, response_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# float32 without TF32 rounds at 6e-8 and adds up a few hundred products; bf16 rounds at 4e-3.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# Between the two: the same logits, exponentials good to 2^-22; in bf16 a gradient near the middle
# of two numbers may be rounded to the other.
APART = {torch.float32: 2e-6, torch.bfloat16: 4e-3}
KINDS = ["forward_kl", "reverse_kl", "jsd", "total_variation"]


def solve(
    pair: Pair, kind: str, kernels: Kernels, temperature: float, *, taught: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Total and gradients, on the CPU."""
    hidden = pair.hidden.detach().cuda().requires_grad_()
    head = pair.head.detach().cuda().requires_grad_()
    teacher: dict[str, Any] = {
        "teacher_hidden": pair.teacher_hidden.cuda(),
        "teacher_head": pair.teacher_head.cuda(),
    }
    parts = fused_linear_response(
        hidden,
        head,
        pair.labels.cuda(),
        pair.valid.cuda(),
        vocab_size=pair.vocab_size,
        settings=ResponseSettings(kind=kind, temperature=temperature),  # pyright: ignore[reportArgumentType]
        weight_ce=0.3,
        weight_response=0.7,
        chunk_tokens=77,
        kernels=kernels,
        **(teacher if taught else {}),
    )
    parts.total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return parts.total.detach().cpu(), hidden.grad.cpu(), head.grad.cpu()


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradients_are_the_references(
    kind: str, dtype: torch.dtype, kernels: Kernels
) -> None:
    pair = random_pair(num_tokens=300, width=64, teacher_width=96, vocab_size=1000, padded=1024)
    pair = pair.to(dtype)  # the reference sees the rounded inputs
    expected = response_reference(pair, kind, temperature=2.0, weight_ce=0.3, weight_response=0.7)
    total, grad_hidden, grad_head = solve(pair, kind, kernels, 2.0)
    bound = BOUNDS[dtype]
    assert relative_error(total, expected.total) < bound
    assert relative_error(grad_hidden, expected.grad_hidden) < bound
    assert relative_error(grad_head, expected.grad_head) < bound


@pytest.mark.parametrize("vocab_size", [1, 4096, 9001])  # one id, whole blocks, odd rows
@pytest.mark.parametrize("dtype", APART)
@pytest.mark.parametrize("kind", [*KINDS, None])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_triton_gives_what_torch_gives(
    temperature: float, kind: str | None, dtype: torch.dtype, vocab_size: int
) -> None:
    """Without a kind: cross-entropy alone."""
    pair = random_pair(100, 64, 96, vocab_size, vocab_size + 7).to(dtype)
    ours = solve(pair, kind or "jsd", "triton", temperature, taught=kind is not None)
    torchs = solve(pair, kind or "jsd", "torch", temperature, taught=kind is not None)
    for actual, expected in zip(ours, torchs, strict=True):
        assert relative_error(actual, expected) < APART[dtype]
