"""Fill Megatron-Core models from a `TensorSource`, one rank's part at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ekd_nemo.errors import CheckpointError, LayoutError
from ekd_nemo.models.weights.parts import (
    DECODER_LAYERS,
    Rank,
    VocabRows,
    canonical,
    find_part,
    hf_layer_prefix,
)
from ekd_nemo.models.weights.source import TensorSource


def load_weights(
    model_chunks: Sequence[nn.Module], source: TensorSource, tp_rank: int = 0, tp_size: int = 1
) -> None:
    """Fill this rank's parameters in place, in their own dtype.

    Works for local and Transformer Engine layers, and for any pipeline or virtual pipeline stage:
    which layers a chunk holds is read from its layers' own numbers. An optimiser with master
    weights that exists already must take them over (`reload_model_params`).

    Args:
        model_chunks: the `GPTModel`s of this rank's virtual stages, bare or wrapped.
        source: where the tensors come from.
        tp_rank: this rank's place in its tensor-parallel group.
        tp_size: size of that group.

    Raises:
        CheckpointError: a parameter has no counterpart in the source, or another shape.
        LayoutError: the tensor-parallel size does not divide the key/value groups or the width.
    """
    arch = source.architecture
    if arch.num_kv_groups % tp_size or arch.ffn_size % tp_size:
        raise LayoutError(
            f"tensor={tp_size} does not divide {arch.num_kv_groups} key/value groups and "
            f"{arch.ffn_size} feed-forward width"
        )
    rank = Rank(tp_rank, tp_size)
    for chunk in model_chunks:
        _check_depth(chunk, arch.num_layers)
        for name, parameter in global_parameters(chunk):
            _fill(name, parameter, source, rank)


def global_parameters(chunk: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every parameter of a chunk under its canonical name with the model's own layer numbers."""
    model: Any = _gpt_model(chunk)
    numbers = [int(layer.layer_number) - 1 for layer in model.decoder.layers]
    for name, parameter in model.named_parameters():
        yield canonical(_with_global_layer(name, numbers)), parameter


def _gpt_model(chunk: nn.Module) -> nn.Module:
    model: Any = chunk
    while not hasattr(model, "decoder"):
        if not hasattr(model, "module"):
            raise CheckpointError(f"{type(chunk).__name__} holds no Megatron-Core GPTModel")
        model = model.module
    return model


def _check_depth(chunk: nn.Module, num_layers: int) -> None:
    config: Any = _gpt_model(chunk).config
    if config.num_layers != num_layers:
        raise CheckpointError(
            f"the model has {config.num_layers} layers, the weights have {num_layers}"
        )


def _with_global_layer(name: str, numbers: list[int]) -> str:
    if not name.startswith(DECODER_LAYERS):
        return name
    index, rest = name.removeprefix(DECODER_LAYERS).split(".", 1)
    return f"{DECODER_LAYERS}{numbers[int(index)]}.{rest}"


@torch.no_grad()
def _fill(name: str, parameter: nn.Parameter, source: TensorSource, rank: Rank) -> None:
    found = find_part(name)
    if found is None:
        raise CheckpointError(f"parameter {name} has no counterpart in Hugging Face's decoder")
    part, layer = found
    if isinstance(part, VocabRows):
        value = _vocab_rows(name, part, parameter, source, rank)
    else:
        value = part.read(source, hf_layer_prefix(layer), rank)
    if value.shape != parameter.shape:
        raise CheckpointError(
            f"parameter {name} is {list(parameter.shape)} on tensor rank {rank.index} of "
            f"{rank.size}, the weights give {list(value.shape)}"
        )
    parameter.copy_(value)


def _vocab_rows(
    name: str, part: VocabRows, parameter: Tensor, source: TensorSource, rank: Rank
) -> Tensor:
    rows, vocab = len(parameter), source.architecture.vocab_size
    if rows * rank.size < vocab:
        raise CheckpointError(
            f"parameter {name} has {rows} rows on each of {rank.size} tensor ranks, "
            f"the vocabulary has {vocab}"
        )
    return part.read_padded(source, rank, rows)
