"""Megatron's logits are transformers' logits, whatever the layout."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.distributed.gpt_ranks import folder_logits
from tests.distributed.ranks import run_ranks

# fp32 sums of up to 64 terms in another order; logits here are below 1 in size.
TINY_TOLERANCE = 1e-4
# 30 layers of 576-term sums; logits up to 34. Measured at most 6.3e-5.
SMOLLM2_TOLERANCE = 1e-3

TOKENS = torch.randint(0, 150, (2, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Random Llama (untied, grouped, Llama 3 rotary scaling) and Qwen2 (tied, biases)."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(5)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
    }
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    # 150 rows: Megatron pads to 256 at any of these layouts. A head wider than hidden / heads.
    llama = LlamaForCausalLM(
        LlamaConfig(**sizes, vocab_size=150, head_dim=16, rope_scaling=scaling)
    )
    qwen = Qwen2ForCausalLM(Qwen2Config(**sizes, vocab_size=150, tie_word_embeddings=True))
    folders = [tmp_path_factory.mktemp("llama"), tmp_path_factory.mktemp("qwen2")]
    for model, folder in zip((llama, qwen), folders, strict=True):
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        model.save_pretrained(folder)
    return folders


def expected_logits(folder: Path, tokens: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(tokens).logits


def largest_difference(found: list[Tensor | None], expected: Tensor) -> float:
    """Over all ranks that have logits, of which there must be one."""
    have = [logits for logits in found if logits is not None]
    assert have
    assert all(logits.isfinite().all() for logits in have)
    return max(float((logits - expected).abs().max()) for logits in have)


@pytest.mark.parametrize(
    ("tensor", "pipeline", "tiny", "smollm2"),
    [(1, 1, True, True), (2, 1, True, False), (3, 1, False, True), (1, 2, True, True)],
)
def test_logits_are_those_of_transformers(
    tiny_folders: list[Path],
    teacher_folder: Path,
    tmp_path: Path,
    tensor: int,
    pipeline: int,
    tiny: bool,
    smollm2: bool,
) -> None:
    limits = dict.fromkeys(tiny_folders, TINY_TOLERANCE) if tiny else {}
    limits |= {teacher_folder: SMOLLM2_TOLERANCE} if smollm2 else {}
    found = run_ranks(
        folder_logits, tensor * pipeline, tmp_path, list(limits), TOKENS, (tensor, pipeline)
    )
    for index, (folder, limit) in enumerate(limits.items()):
        difference = largest_difference(
            [rank[index] for rank in found], expected_logits(folder, TOKENS)
        )
        assert difference < limit, folder
