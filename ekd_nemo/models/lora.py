"""Low-rank adapters on the student: NeMo's, with starts that do not depend on the layout.

The student's own parameters are frozen; every chosen matrix W gets `W + alpha / rank * B A`.
Checkpoints hold both, under the name of the matrix with `adapter.linear_in` (A) and
`adapter.linear_out` (B) below.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
Not covered: the masks of `dropout` are torch's and hang on the layout; a resumed run draws others.
"""

import hashlib
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model
from nemo.collections.llm.fn.base import walk
from nemo.collections.llm.peft.lora import LoRA, LoRALinear
from torch import Tensor, nn

from ekd_nemo.config.recipe import Lora
from ekd_nemo.parallel.taps import layers_of


def add_adapters(chunk: nn.Module, lora: Lora, seed: int) -> int:
    """Freeze a model part and wrap its chosen matrices, in place.

    Every rank calls this for its parts, before gradients and optimiser are set up. B begins at
    zero, so that the wrapped model computes what the bare one did; A depends on the seed, the
    layer's number in the whole model and the matrix alone.

    Args:
        chunk: a Megatron GPT, or a pipeline stage of one, with its weights.
        lora: rank, alpha, dropout and which matrices.
        seed: of the run.

    Returns:
        How many matrices were wrapped.
    """
    chunk.requires_grad_(False)
    gpt: Any = unwrap_model(chunk)
    if gpt.pre_process and gpt.config.recompute_granularity == "full":
        gpt.embedding.register_forward_hook(_wants_gradient)
    recipe = LoRA(
        target_modules=list(lora.target_modules),
        dim=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        dropout_position="pre",
    )
    walk(chunk, recipe.transform)
    wrapped = 0
    for number, layer in layers_of(chunk).items():
        for name, part in layer.named_modules():
            if isinstance(part, LoRALinear):
                part.register_load_state_dict_pre_hook(_load_below)
                _start(part.adapter, f"{number}.{name}", seed)
                wrapped += 1
    return wrapped


def _wants_gradient(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
    """Megatron recomputes with gradients only what is given something that wants one."""
    if torch.is_grad_enabled():
        output.requires_grad_()


def _load_below(_module: nn.Module, state: dict[str, Any], prefix: str, *_others: Any) -> None:
    """NeMo saves a wrapped matrix under its own name and asks for it under `to_wrap` when it loads."""
    for key in [name for name in state if not name.startswith(f"{prefix}adapter.")]:
        state[f"{prefix}to_wrap.{key.removeprefix(prefix)}"] = state.pop(key)


@torch.no_grad()
def _start(adapter: Any, name: str, seed: int) -> None:
    """Fill this rank's part of A from one draw of the whole, and B with zeros.

    A is drawn uniformly from +-1 / sqrt(inputs), as torch starts its linear layers.
    """
    weight = adapter.linear_in.weight
    size = parallel_state.get_tensor_model_parallel_world_size()
    rank = parallel_state.get_tensor_model_parallel_rank()
    axis = 1 if adapter.input_is_parallel else 0  # which of [rank, inputs] tensor ranks cut
    shape = list(weight.shape)
    shape[axis] *= size
    digest = hashlib.blake2b(f"{seed}:adapter:{name}".encode(), digest_size=7).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    whole = (torch.rand(shape, generator=draw) * 2 - 1) / shape[1] ** 0.5
    weight.copy_(whole.chunk(size, dim=axis)[rank])
    adapter.linear_out.weight.zero_()
