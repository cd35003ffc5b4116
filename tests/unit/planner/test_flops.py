"""FLOP counts against counts made by hand and by a walk over the matrices."""

import pytest

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.planner.flops import forward_flops, mean_context, model_flops, step_flops
from tests.unit.planner.models import LLAMA_8B, LLAMA_70B, QWEN_7B


def test_context_of_packed_segments() -> None:
    assert mean_context([4]) == (1 + 2 + 3 + 4) / 4
    assert mean_context([2, 1]) == (1 + 2 + 1) / 3
    assert mean_context([]) == 0.0


@pytest.mark.parametrize("arch", [LLAMA_8B, LLAMA_70B, QWEN_7B])
def test_layers_are_two_a_weight(arch: Architecture) -> None:
    # Every weight of a matrix multiplies each token once; norms, biases and the embedding are not matrices of products.
    norms = arch.num_layers * 2 * arch.hidden_size + arch.hidden_size
    bias = (
        (arch.num_heads + 2 * arch.num_kv_groups) * arch.head_dim * arch.num_layers * arch.qkv_bias
    )
    embeddings = arch.vocab_size * arch.hidden_size
    weights = arch.num_parameters() - norms - bias - 2 * embeddings
    forward = forward_flops(arch, 1.0)
    assert forward.layers == 2 * weights
    assert forward.head == 2 * embeddings


def test_attention_walked_pair_by_pair() -> None:
    heads, dim, length = LLAMA_8B.num_heads, LLAMA_8B.head_dim, 7
    pairs = sum(1 for q in range(length) for k in range(length) if k <= q)
    per_layer = (
        pairs * heads * (2 * dim + 2 * dim)
    )  # a dot product for the score, one multiple of the value
    context = mean_context([length])
    assert forward_flops(LLAMA_8B, context).attention * length == pytest.approx(
        per_layer * LLAMA_8B.num_layers
    )


def test_published_count_of_llama_8b() -> None:
    # NVIDIA's table (dgxc-benchmarking at 85380ff, llama3.1/README.md) gives 62.47 % of 989 TFLOP/s at 85,459 tokens/s
    # on 8 GPUs: 57.8 GFLOP a token, with attention over the whole square of 8192.
    published = 0.6247 * 989e12 * 8 / 85_459
    assert model_flops(LLAMA_8B, 8192.0) == pytest.approx(published, rel=0.005)


def test_70b_to_8b_step_is_dominated_by_the_teacher() -> None:
    # 2 * 70 + 6 * 8 GFLOP a token, short of the embeddings and with little attention.
    flops = step_flops(1, 1.0, LLAMA_8B, LLAMA_70B)
    assert flops == pytest.approx(188e9, rel=0.05)


def test_what_is_left_out_costs_nothing() -> None:
    full = model_flops(LLAMA_8B, 100.0)
    forward = forward_flops(LLAMA_8B, 100.0)
    assert full == 3 * forward.total
    assert model_flops(LLAMA_8B, 100.0, "none", 0.0) == forward.layers + forward.attention
    assert model_flops(LLAMA_8B, 100.0, "lora") == pytest.approx(
        2 * forward.total + forward.attention
    )
    relation = step_flops(10, 100.0, LLAMA_8B, student_forwards=2)
    assert relation == pytest.approx(10 * (full + forward.layers + forward.attention))
    hidden_only = step_flops(10, 100.0, LLAMA_8B, LLAMA_70B, teacher_head=False)
    whole = step_flops(10, 100.0, LLAMA_8B, LLAMA_70B)
    assert whole - hidden_only == pytest.approx(10 * forward_flops(LLAMA_70B, 100.0).head)
