"""The decoders of the shipped recipes, by hub id: a plan on a machine without the hub needs no download.

From the models' config.json on huggingface.co; a download of the same id is compared with this table in no place, so a
launch reads the file itself.
"""

from typing import Final

from ekd_nemo.config.architecture import Architecture, RopeScaling


def _llama31(num_layers: int, hidden_size: int, ffn_size: int, num_heads: int) -> Architecture:
    return Architecture(
        family="llama",
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_size=ffn_size,
        num_heads=num_heads,
        num_kv_groups=8,
        head_dim=128,
        vocab_size=128256,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(factor=8.0),
        norm_eps=1e-5,
        tied_embeddings=False,
        qkv_bias=False,
        max_positions=131072,
        initializer_range=0.02,
    )


def _qwen25(
    num_layers: int, hidden_size: int, ffn_size: int, num_heads: int, num_kv_groups: int
) -> Architecture:
    # Both sizes pad the embedding to 152,064 rows; the smaller models of the family have 151,936.
    return Architecture(
        family="qwen2",
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_size=ffn_size,
        num_heads=num_heads,
        num_kv_groups=num_kv_groups,
        head_dim=128,
        vocab_size=152064,
        rope_theta=1000000.0,
        rope_scaling=None,
        norm_eps=1e-6,
        tied_embeddings=False,
        qkv_bias=True,
        max_positions=32768,
        initializer_range=0.02,
    )


KNOWN_MODELS: Final[dict[str, Architecture]] = {
    "meta-llama/Llama-3.1-8B-Instruct": _llama31(32, 4096, 14336, 32),
    "meta-llama/Llama-3.1-70B-Instruct": _llama31(80, 8192, 28672, 64),
    "Qwen/Qwen2.5-7B-Instruct": _qwen25(28, 3584, 18944, 28, 4),
    "Qwen/Qwen2.5-72B-Instruct": _qwen25(80, 8192, 29568, 64, 8),
}
