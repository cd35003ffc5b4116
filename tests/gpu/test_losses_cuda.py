"""The response loss on a GPU against the float64 reference on the CPU."""

import pytest
import torch

from ekd_nemo.losses.response import ResponseSettings, fused_linear_response
from tests.unit.losses.references import random_pair, relative_error, response_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# float32 without TF32 rounds at 6e-8 and adds up a few hundred products; bf16 rounds at 4e-3.
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "total_variation"])
def test_value_and_gradients_are_the_references(kind: str, dtype: torch.dtype) -> None:
    pair = random_pair(num_tokens=300, width=64, teacher_width=96, vocab_size=1000, padded=1024)
    pair = pair.to(dtype)  # the reference sees the rounded inputs
    expected = response_reference(pair, kind, temperature=2.0, weight_ce=0.3, weight_response=0.7)
    hidden = pair.hidden.detach().cuda().requires_grad_()
    head = pair.head.detach().cuda().requires_grad_()
    parts = fused_linear_response(
        hidden,
        head,
        pair.labels.cuda(),
        pair.valid.cuda(),
        vocab_size=pair.vocab_size,
        teacher_hidden=pair.teacher_hidden.cuda(),
        teacher_head=pair.teacher_head.cuda(),
        settings=ResponseSettings(kind=kind, temperature=2.0),  # pyright: ignore[reportArgumentType]
        weight_ce=0.3,
        weight_response=0.7,
        chunk_tokens=77,
    )
    parts.total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    bound = BOUNDS[dtype]
    assert relative_error(parts.total.detach().cpu(), expected.total) < bound
    assert relative_error(hidden.grad.cpu(), expected.grad_hidden) < bound
    assert relative_error(head.grad.cpu(), expected.grad_head) < bound
