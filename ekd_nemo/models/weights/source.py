"""Where a decoder's tensors come from: the protocol, and a view that keeps some layers only."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.errors import ConfigError

LAYER_PREFIX = "model.layers."
EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


class TensorSource(Protocol):
    """Tensors of one decoder under their Hugging Face names."""

    @property
    def architecture(self) -> Architecture:
        """The decoder that the tensors belong to."""
        ...

    def get(self, name: str) -> Tensor:
        """The whole tensor.

        Raises:
            CheckpointError: there is no tensor of this name.
        """
        ...

    def get_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the first axis; reads no others where the source allows it."""
        ...

    def get_columns(self, name: str, start: int, stop: int) -> Tensor:
        """Columns `start` to `stop` of a matrix; reads no others where the source allows it."""
        ...


def tensor_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint of this decoder holds, by Hugging Face name.

    Weights are [out, in]. A tied head is not listed: it is the embedding.
    """
    hidden, q_size = arch.hidden_size, arch.num_heads * arch.head_dim
    kv_size = arch.num_kv_groups * arch.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_size, hidden),
        "self_attn.k_proj.weight": (kv_size, hidden),
        "self_attn.v_proj.weight": (kv_size, hidden),
        "self_attn.o_proj.weight": (hidden, q_size),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (arch.ffn_size, hidden),
        "mlp.up_proj.weight": (arch.ffn_size, hidden),
        "mlp.down_proj.weight": (hidden, arch.ffn_size),
    }
    if arch.qkv_bias:
        layer |= {
            "self_attn.q_proj.bias": (q_size,),
            "self_attn.k_proj.bias": (kv_size,),
            "self_attn.v_proj.bias": (kv_size,),
        }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (arch.vocab_size, hidden)}
    for index in range(arch.num_layers):
        shapes |= {f"{LAYER_PREFIX}{index}.{part}": shape for part, shape in layer.items()}
    shapes[FINAL_NORM] = (hidden,)
    if not arch.tied_embeddings:
        shapes[HEAD] = (arch.vocab_size, hidden)
    return shapes


class LayerSubsetSource:
    """A decoder made of some layers of another, with its embedding, final norm and head."""

    def __init__(self, source: TensorSource, keep_layers: Sequence[int]) -> None:
        """Keep layers of `source`.

        Args:
            source: the deeper decoder.
            keep_layers: its layers that stay, counted from 0, in ascending order.

        Raises:
            ConfigError: the list is empty, not ascending, or names a layer that is not there.
        """
        deep = source.architecture.num_layers
        keep = tuple(keep_layers)
        if not keep or list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= deep:
            raise ConfigError(
                f"keep_layers is {list(keep)}; accepted are ascending numbers from 0 to {deep - 1}"
            )
        self._source = source
        self._keep = keep
        self.architecture = source.architecture.with_layers(len(keep))

    def get(self, name: str) -> Tensor:
        """The whole tensor."""
        return self._source.get(self._deep_name(name))

    def get_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor."""
        return self._source.get_rows(self._deep_name(name), start, stop)

    def get_columns(self, name: str, start: int, stop: int) -> Tensor:
        """Columns of a matrix."""
        return self._source.get_columns(self._deep_name(name), start, stop)

    def _deep_name(self, name: str) -> str:
        if not name.startswith(LAYER_PREFIX):
            return name
        index, part = name.removeprefix(LAYER_PREFIX).split(".", 1)
        return f"{LAYER_PREFIX}{self._keep[int(index)]}.{part}"
