"""The layers of a decoder: Transformer Engine's with CUDA, local ones on the CPU.

Both save the same checkpoint: on disk the local layers take Transformer Engine's names
(`get_gpt_layer_local_spec` maps them).
"""

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import divide
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis, in fp32 inside.

    Megatron's wrapper of torch's norm refuses sequence parallelism. This one marks its weight, so
    that Megatron sums the weight's gradient over the tensor-parallel ranks, each of which sees only
    its part of the sequence.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_unused: Any
    ) -> None:
        """Create the weight, ones of [hidden_size]; other arguments of Megatron's norms are unread."""
        super().__init__()
        if config.normalization != "RMSNorm" or config.layernorm_zero_centered_gamma:
            raise ValueError("the CPU layers hold RMSNorm without a centred weight only")
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        weight: Any = self.weight
        weight.sequence_parallel = config.sequence_parallel
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., hidden_size]."""
        normed = nn.functional.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return normed.to(x.dtype) * self.weight


class MaskedAttention(MegatronModule):
    """Causal attention inside segments, by torch's scaled dot product attention.

    Megatron's own CPU attention keeps [batch, heads, S, S] scores for the backward pass and refuses
    packed sequences; this one takes the mask and keeps no scores.

    Not covered: attention dropout, sliding windows, context parallelism.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        **_unused: Any,
    ) -> None:
        """Take the head counts of this tensor-parallel rank; `layer_number` counts from 1."""
        super().__init__(config=config)
        if (
            config.attention_dropout
            or config.context_parallel_size > 1
            or config.window_size is not None
        ):
            raise ValueError("the CPU attention has no dropout, window or context parallelism")
        self.layer_number = layer_number
        self.groups = divide(config.num_attention_heads, config.num_query_groups)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [S, B, heads, D].
            key: [S, B, groups, D].
            value: [S, B, groups, D].
            attention_mask: bool, broadcast to [B, heads, S, S]; True where a pair must not attend.
            attn_mask_type: not read; the mask says all.
            attention_bias: not supported.
            packed_seq_params: not supported; the mask holds the segments.

        Returns:
            [S, B, heads * D].
        """
        assert attention_bias is None
        assert packed_seq_params is None, "on the CPU segments come as a mask"
        query, key, value = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        if self.groups > 1:
            key, value = (t.repeat_interleave(self.groups, dim=1) for t in (key, value))
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=~attention_mask
        )
        return out.permute(2, 0, 1, 3).flatten(2)


def cpu_layer_spec(config: TransformerConfig) -> ModuleSpec:
    """Megatron's local layer with the norm and the attention of this module."""
    spec = get_gpt_layer_local_spec(normalization=config.normalization)
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = RMSNorm
    layer.self_attention.submodules.core_attention = MaskedAttention
    return spec


def decoder_block_spec(
    config: TransformerConfig, vp_stage: int | None = None, pp_rank: int | None = None
) -> TransformerBlockSubmodules | ModuleSpec:
    """The layers that a pipeline stage builds, for the device at hand.

    Args:
        config: the model's.
        vp_stage: the chunk, where stages interleave.
        pp_rank: the stage; None asks Megatron's parallel state.
    """
    if torch.cuda.is_available():
        return get_gpt_layer_with_transformer_engine_spec()
    count = get_num_layers_to_build(config, vp_stage, pp_rank)
    return TransformerBlockSubmodules(
        layer_specs=[cpu_layer_spec(config)] * count, layer_norm=RMSNorm
    )
