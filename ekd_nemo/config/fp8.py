"""What FP8 asks of a decoder and its layout."""

from typing import Final

from ekd_nemo.config.architecture import Architecture

# Transformer Engine's FP8 products want both sides of a weight, and the tokens, in multiples of this.
FP8_MULTIPLE: Final = 16


def fp8_misfit(arch: Architecture, tensor: int, tokens: int) -> str:
    """Why a decoder cannot compute in FP8 in a layout; empty if it can.

    Args:
        arch: the decoder.
        tensor: its tensor-parallel size.
        tokens: of a microbatch.
    """
    query, key_value = arch.num_heads * arch.head_dim, arch.num_kv_groups * arch.head_dim
    sides = {
        "hidden width": arch.hidden_size,
        "joint projection of query, key and value": (query + 2 * key_value) // tensor,
        "attention's output": query // tensor,
        "feed-forward width": arch.ffn_size // tensor,
        "tokens of a microbatch": tokens,
    }
    for what, size in sides.items():
        if size % FP8_MULTIPLE:
            return (
                f"fp8 wants multiples of {FP8_MULTIPLE}, and with tensor {tensor} the {what} is {size}; "
                "accepted: bf16, or a layout and sequence length that divide so"
            )
    return ""
