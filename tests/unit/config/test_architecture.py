"""Reading a decoder's numbers from config.json, and the layouts that fit it."""

import json
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.config.architecture import (
    Architecture,
    RopeScaling,
    architecture_of,
    check_layout,
    padded_vocab,
    read_architecture,
)
from ekd_nemo.errors import CheckpointError, LayoutError

SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
# As published for meta-llama/Llama-3.1-8B.
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
# As published for Qwen/Qwen2.5-7B.
QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
}


def test_a_llama_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    arch = read_architecture(tmp_path)
    assert (arch.family, arch.num_layers, arch.num_kv_groups, arch.head_dim) == (
        "llama",
        32,
        8,
        128,
    )
    assert arch.rope_scaling == RopeScaling(8.0)
    assert not arch.qkv_bias
    assert not arch.tied_embeddings


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(SMOLLM2, 134_515_008), (LLAMA_8B, 8_030_261_248), (QWEN_7B, 7_615_616_512)],
)
def test_parameter_counts_are_the_published_ones(config: dict[str, Any], parameters: int) -> None:
    assert architecture_of(config).num_parameters() == parameters


@pytest.mark.parametrize("config", [SMOLLM2, LLAMA_8B, QWEN_7B])
def test_hf_config_and_back(config: dict[str, Any]) -> None:
    arch = architecture_of(config)
    assert architecture_of(json.loads(json.dumps(arch.to_hf_config()))) == arch


def test_the_rope_parameters_of_transformers_5_are_read() -> None:
    newer = {key: value for key, value in LLAMA_8B.items() if not key.startswith("rope_")}
    newer["rope_parameters"] = LLAMA_8B["rope_scaling"] | {"rope_theta": 500000.0}
    assert architecture_of(newer) == architecture_of(LLAMA_8B)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, r"model_type is 'mixtral', accepted are llama, qwen2"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', accepted is 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "accepted is null or llama3"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": "30"}, "num_hidden_layers is '30', accepted is a whole number"),
        ({"num_hidden_layers": 0}, "num_layers is 0, accepted is 1 or more"),
        ({"num_attention_heads": 0}, "num_heads is 0"),
        ({"num_key_value_heads": 2}, "9 heads do not divide into 2 key/value groups"),
        ({"tie_word_embeddings": "yes"}, "accepted is true or false"),
    ],
)
def test_what_is_not_covered_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        architecture_of(SMOLLM2 | change, "model/config.json")
    assert str(caught.value).startswith("model/config.json: ")
    assert str(caught.value).count("model/config.json") == 1


def test_other_constants_of_llama3_scaling_are_refused() -> None:
    scaling = LLAMA_8B["rope_scaling"] | {"high_freq_factor": 2.0}
    with pytest.raises(CheckpointError, match=r"high_freq_factor is 2\.0, Megatron-Core has 4\.0"):
        architecture_of(LLAMA_8B | {"rope_scaling": scaling})


def test_a_missing_folder_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        read_architecture(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        read_architecture(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_bad_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json: ") as caught:
        read_architecture(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (3, 1), (1, 2), (3, 5)])
def test_layouts_that_fit(tensor: int, pipeline: int) -> None:
    check_layout(architecture_of(SMOLLM2), tensor, pipeline, "student")


@pytest.mark.parametrize(
    ("config", "tensor", "pipeline", "message"),
    [
        (
            SMOLLM2,
            2,
            1,
            "teacher: tensor=2 does not divide its 9 attention heads; accepted are 1, 3",
        ),
        (
            LLAMA_8B,
            16,
            1,
            "tensor=16 does not divide its 8 key/value groups; accepted are 1, 2, 4, 8",
        ),
        (SMOLLM2 | {"intermediate_size": 1537}, 3, 1, "1537 feed-forward width"),
        (SMOLLM2, 1, 4, "pipeline=4 does not divide its 30 layers"),
        (SMOLLM2, 1, 60, "pipeline=60"),
        (SMOLLM2, 0, 1, "tensor=0"),
    ],
)
def test_layouts_that_do_not_fit(
    config: dict[str, Any], tensor: int, pipeline: int, message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        check_layout(architecture_of(config), tensor, pipeline, "teacher")


def test_fewer_layers_keep_the_rest() -> None:
    arch = architecture_of(SMOLLM2)
    assert isinstance(arch.with_layers(10), Architecture)
    assert arch.with_layers(10).with_layers(30) == arch


@pytest.mark.parametrize(
    ("vocab", "tensor", "padded"), [(49152, 1, 49152), (49152, 3, 49152), (1000, 2, 1024)]
)
def test_padded_vocab(vocab: int, tensor: int, padded: int) -> None:
    assert padded_vocab(vocab, tensor) == padded
