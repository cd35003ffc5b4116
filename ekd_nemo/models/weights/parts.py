"""Megatron's parameters as cuts of Hugging Face's tensors, in both directions.

Names are those of the Transformer Engine layers, which are also those of Megatron's distributed
checkpoints; `canonical` brings the local layers' names to them. Layers: `decoder.layers.N.PART`.

Shapes: H hidden, F feed-forward width, D head width, G key/value groups, Q query heads a group,
V vocabulary rows. Source: megatron-core 0.15 attention.py `get_query_key_value_tensors`, mlp.py.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.models.weights.source import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LAYER_PREFIX,
    TensorSource,
)

DECODER_LAYERS = "decoder.layers."
WORD_EMBEDDINGS = "embedding.word_embeddings.weight"
OUTPUT_LAYER = "output_layer.weight"

# Local layers keep the norms in modules of their own; Transformer Engine fuses them into the
# linear layer that follows (gpt_layer_specs.py, `sharded_state_dict_keys_map`).
LOCAL_NAMES = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


def canonical(name: str) -> str:
    """A parameter's name in Transformer Engine's terms; other names are returned unchanged."""
    for local, fused in LOCAL_NAMES.items():
        if name.startswith(DECODER_LAYERS) and name.endswith(f".{local}"):
            return name.removesuffix(local) + fused
    return name


@dataclass(frozen=True)
class Rank:
    """One tensor-parallel rank's place."""

    index: int = 0
    size: int = 1

    def share(self, total: int) -> tuple[int, int]:
        """Start and stop of this rank's equal share of `total`."""
        each = total // self.size
        return self.index * each, (self.index + 1) * each


class Part(Protocol):
    """One Megatron parameter; `prefix` is Hugging Face's layer prefix or empty."""

    def read(self, source: TensorSource, prefix: str, rank: Rank) -> Tensor:
        """This rank's parameter, from Hugging Face tensors."""
        ...

    def split(self, full: Tensor, arch: Architecture, prefix: str) -> dict[str, Tensor]:
        """Hugging Face tensors from the parameter of all ranks together."""
        ...

    def names(self, arch: Architecture, prefix: str) -> list[str]:
        """The Hugging Face tensors that `split` gives."""
        ...


@dataclass(frozen=True)
class Whole:
    """A tensor that every rank holds whole: norms."""

    name: str

    def read(self, source: TensorSource, prefix: str, rank: Rank) -> Tensor:
        """[H]."""
        return source.get(prefix + self.name)

    def split(self, full: Tensor, arch: Architecture, prefix: str) -> dict[str, Tensor]:
        """[H]."""
        return {prefix + self.name: full}

    def names(self, arch: Architecture, prefix: str) -> list[str]:
        """One norm."""
        return [prefix + self.name]


@dataclass(frozen=True)
class Columns:
    """A row-parallel matrix, cut along its input: attention output and down projection."""

    name: str

    def read(self, source: TensorSource, prefix: str, rank: Rank) -> Tensor:
        """[H, in / TP]."""
        arch = source.architecture
        attention = self.name.startswith("self_attn.")
        width = arch.num_heads * arch.head_dim if attention else arch.ffn_size
        return source.get_columns(prefix + self.name, *rank.share(width))

    def split(self, full: Tensor, arch: Architecture, prefix: str) -> dict[str, Tensor]:
        """[H, in]."""
        return {prefix + self.name: full}

    def names(self, arch: Architecture, prefix: str) -> list[str]:
        """One matrix."""
        return [prefix + self.name]


@dataclass(frozen=True)
class GateUp:
    """The gate's rows of a rank above the up projection's rows of the same rank."""

    gate: str = "mlp.gate_proj.weight"
    up: str = "mlp.up_proj.weight"

    def read(self, source: TensorSource, prefix: str, rank: Rank) -> Tensor:
        """[2 F / TP, H]."""
        rows = rank.share(source.architecture.ffn_size)
        names = self.names(source.architecture, prefix)
        return torch.cat([source.get_rows(name, *rows) for name in names])

    def split(self, full: Tensor, arch: Architecture, prefix: str) -> dict[str, Tensor]:
        """[2 F, H], all gates above all up projections, as checkpoints store it."""
        return dict(zip(self.names(arch, prefix), full.chunk(2), strict=True))

    def names(self, arch: Architecture, prefix: str) -> list[str]:
        """Gate and up projection."""
        return [prefix + self.gate, prefix + self.up]


@dataclass(frozen=True)
class Qkv:
    """Query, key and value interleaved by group: Q query heads, one key, one value."""

    kind: str

    def read(self, source: TensorSource, prefix: str, rank: Rank) -> Tensor:
        """[G / TP * (Q + 2) * D, H] for weights, without H for biases."""
        arch = source.architecture
        first, last = rank.share(arch.num_kv_groups)
        pieces: list[Tensor] = []
        for name, width in zip(self.names(arch, prefix), _group_rows(arch), strict=True):
            rows = source.get_rows(name, first * width, last * width)
            pieces.append(rows.unflatten(0, (last - first, width)))
        return torch.cat(pieces, dim=1).flatten(0, 1)

    def split(self, full: Tensor, arch: Architecture, prefix: str) -> dict[str, Tensor]:
        """[G * (Q + 2) * D, H] for weights, without H for biases."""
        groups = full.unflatten(0, (arch.num_kv_groups, -1))
        pieces = groups.split(_group_rows(arch), dim=1)
        names = self.names(arch, prefix)
        return {name: piece.flatten(0, 1) for name, piece in zip(names, pieces, strict=True)}

    def names(self, arch: Architecture, prefix: str) -> list[str]:
        """Query, key and value."""
        return [f"{prefix}self_attn.{letter}_proj.{self.kind}" for letter in "qkv"]


@dataclass(frozen=True)
class VocabRows:
    """Embedding or head; rows beyond the vocabulary are padding and hold zeros."""

    name: str

    def read(self, source: TensorSource, prefix: str, rank: Rank) -> Tensor:
        """[V / TP, H] without padding: for one rank only, see `read_padded`."""
        return self.read_padded(source, rank, source.architecture.vocab_size // rank.size)

    def read_padded(self, source: TensorSource, rank: Rank, rows: int) -> Tensor:
        """[rows, H]: this rank's rows of the padded vocabulary of `rows * TP`."""
        vocab = source.architecture.vocab_size
        name = self.hf_name(source.architecture)
        start = min(rank.index * rows, vocab)
        found = source.get_rows(name, start, min(start + rows, vocab))
        if len(found) == rows:
            return found
        return torch.cat([found, found.new_zeros(rows - len(found), found.shape[1])])

    def split(self, full: Tensor, arch: Architecture, prefix: str) -> dict[str, Tensor]:
        """[padded V, H]; padding is dropped."""
        return {self.hf_name(arch): full[: arch.vocab_size]}

    def names(self, arch: Architecture, prefix: str) -> list[str]:
        """Embedding or head."""
        return [self.hf_name(arch)]

    def hf_name(self, arch: Architecture) -> str:
        """The stored tensor: a tied head is the embedding."""
        return EMBEDDING if self.name == HEAD and arch.tied_embeddings else self.name


def _group_rows(arch: Architecture) -> list[int]:
    """Rows of query, key and value in one group."""
    query = arch.num_heads // arch.num_kv_groups * arch.head_dim
    return [query, arch.head_dim, arch.head_dim]


TOP_PARTS: dict[str, Part] = {
    WORD_EMBEDDINGS: VocabRows(EMBEDDING),
    "decoder.final_layernorm.weight": Whole(FINAL_NORM),
    OUTPUT_LAYER: VocabRows(HEAD),
}
LAYER_PARTS: dict[str, Part] = {
    "self_attention.linear_qkv.layer_norm_weight": Whole("input_layernorm.weight"),
    "self_attention.linear_qkv.weight": Qkv("weight"),
    "self_attention.linear_qkv.bias": Qkv("bias"),
    "self_attention.linear_proj.weight": Columns("self_attn.o_proj.weight"),
    "mlp.linear_fc1.layer_norm_weight": Whole("post_attention_layernorm.weight"),
    "mlp.linear_fc1.weight": GateUp(),
    "mlp.linear_fc2.weight": Columns("mlp.down_proj.weight"),
}


def layer_parts(arch: Architecture) -> dict[str, Part]:
    """The parameters of one layer of this decoder, by canonical name within the layer."""
    return {
        name: part for name, part in LAYER_PARTS.items() if arch.qkv_bias or name[-4:] != "bias"
    }


def top_parts(arch: Architecture) -> dict[str, Part]:
    """The parameters outside the layers that a checkpoint stores; a tied head is not stored."""
    return {
        name: part
        for name, part in TOP_PARTS.items()
        if not (arch.tied_embeddings and name == OUTPUT_LAYER)
    }


def find_part(name: str) -> tuple[Part, int | None] | None:
    """The part of a parameter's full canonical name and its layer number; None if unknown."""
    if name in TOP_PARTS:
        return TOP_PARTS[name], None
    if not name.startswith(DECODER_LAYERS):
        return None
    index, _, rest = name.removeprefix(DECODER_LAYERS).partition(".")
    if rest not in LAYER_PARTS or not index.isdecimal():
        return None
    return LAYER_PARTS[rest], int(index)


def hf_layer_prefix(layer: int | None) -> str:
    """Hugging Face's prefix of a layer counted from 0; empty outside the layers."""
    return "" if layer is None else f"{LAYER_PREFIX}{layer}."
