"""An `Architecture` in Megatron-Core's terms."""

from typing import Any

from torch.nn import functional

from ekd_nemo.config.architecture import Architecture


def transformer_kwargs(arch: Architecture) -> dict[str, Any]:
    """Arguments of Megatron-Core's `TransformerConfig` (and NeMo's `GPTConfig`) that fix the maths.

    Layout, precision and fusions are the caller's.
    """
    return {
        "num_layers": arch.num_layers,
        "hidden_size": arch.hidden_size,
        "ffn_hidden_size": arch.ffn_size,
        "num_attention_heads": arch.num_heads,
        "num_query_groups": arch.num_kv_groups,
        "kv_channels": arch.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": arch.norm_eps,
        "gated_linear_unit": True,
        "activation_func": functional.silu,
        "add_bias_linear": False,
        "add_qkv_bias": arch.qkv_bias,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method_std": arch.initializer_range,
    }


def model_kwargs(arch: Architecture) -> dict[str, Any]:
    """Arguments of Megatron-Core's `GPTModel` that fix the maths, without the vocabulary."""
    scaling = arch.rope_scaling
    return {
        "position_embedding_type": "rope",
        "rotary_percent": 1.0,
        "rotary_base": arch.rope_theta,
        "rope_scaling": scaling is not None,
        "rope_scaling_factor": scaling.factor if scaling is not None else 1.0,
        "share_embeddings_and_output_weights": arch.tied_embeddings,
    }
