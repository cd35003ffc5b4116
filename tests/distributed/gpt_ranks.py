"""Plain Megatron-Core models on gloo ranks: built, filled from a folder, run for their logits."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ekd_nemo.config.architecture import Architecture, padded_vocab
from ekd_nemo.models.weights import (
    FolderSource,
    TensorSource,
    load_weights,
    model_kwargs,
    transformer_kwargs,
)


def start_parallel(tensor: int, pipeline: int) -> None:
    """Patch for the CPU and set up Megatron's groups on the default process group."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from ekd_nemo.backend import cpu

    cpu.install(nemo=False)
    parallel_state.initialize_model_parallel(tensor, pipeline)
    model_parallel_cuda_manual_seed(1234)


def build(arch: Architecture, tensor: int, pipeline: int) -> Any:
    """This rank's GPTModel, at Megatron's own random start."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    from ekd_nemo.backend import cpu
    from ekd_nemo.backend.layers import decoder_block_spec

    config = TransformerConfig(
        **transformer_kwargs(arch) | cpu.transformer_overrides(),
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        pipeline_dtype=torch.float32,
    )
    return GPTModel(
        config,
        decoder_block_spec(config),
        padded_vocab(arch.vocab_size, tensor),
        arch.max_positions,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=False,
        **model_kwargs(arch),
    )


def filled(source: TensorSource, tensor: int, pipeline: int) -> Any:
    """This rank's GPTModel with the source's weights; NaN before, so that nothing goes unfilled."""
    from megatron.core import parallel_state

    model = build(source.architecture, tensor, pipeline)
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    load_weights([model], source, parallel_state.get_tensor_model_parallel_rank(), tensor)
    return model


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor | None:
    """[B, S, padded V] on the last pipeline stage, None on others; tokens [B, S]."""
    from megatron.core import parallel_state

    batch, length = tokens.shape
    positions = torch.arange(length).expand(batch, -1)
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
    if not model.pre_process:
        hidden = torch.empty(length, batch, model.config.hidden_size)
        dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    out = model(tokens, positions, mask)
    if model.post_process:
        return out
    dist.send(out.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
    return None


def folder_logits(
    rank: int, world_size: int, folders: list[Path], tokens: Tensor, layout: tuple[int, int]
) -> list[Tensor | None]:
    """Every folder's logits without vocabulary padding, in one start of the ranks."""
    tensor, pipeline = layout
    start_parallel(tensor, pipeline)
    found: list[Tensor | None] = []
    for folder in folders:
        source = FolderSource(folder)
        out = logits(filled(source, tensor, pipeline), tokens)
        found.append(None if out is None else out[..., : source.architecture.vocab_size].clone())
    return found


def save_folders(rank: int, world_size: int, folders: list[Path], out: Path) -> None:
    """Save models as Megatron does to out/NAME/tpN and out/NAME/ppN, at TP and PP of all ranks."""
    from megatron.core import dist_checkpointing, parallel_state

    for tensor, pipeline in ((world_size, 1), (1, world_size)):
        start_parallel(tensor, pipeline)
        for folder in folders:
            model = filled(FolderSource(folder), tensor, pipeline)
            layout = f"tp{tensor}" if tensor > 1 else f"pp{pipeline}"
            weights = out / folder.name / layout / "weights"
            weights.mkdir(parents=True, exist_ok=True)
            dist.barrier()
            dist_checkpointing.save(model.sharded_state_dict(prefix="module."), str(weights))
        parallel_state.destroy_model_parallel()
