"""One normalisation for the whole global batch, whatever its cut.

A term's mean is its sum over the global batch divided by the tokens that carry it. Both the
division by the number of microbatches in Megatron's schedule (`forward_step_calc_loss`, the branch
of two outputs) and the division by the data-parallel size in its gradient buffers
(`DistributedDataParallel`, `gradient_scaling_factor`) are means of means. `loss_scale` cancels
both.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from ekd_nemo.backend.device import compute_device


def global_sum(local: Sequence[int]) -> list[int]:
    """Add integers up over the data-parallel ranks.

    Collectives: one sum of as many integers.
    """
    counts = torch.tensor(local, dtype=torch.int64, device=compute_device())
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size() > 1:
        dist.all_reduce(counts, group=group)
    return counts.tolist()


def loss_scale(count: int, num_microbatches: int = 1) -> float:
    """What a sum is multiplied by, so that gradients are those of the mean over the global batch.

    Args:
        count: tokens (pairs, triplets) of the global batch; a batch without any costs nothing.
        num_microbatches: that the schedule divides by; 1 for what is attached to a hidden state,
            which the schedule does not see.
    """
    replicas = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    context = parallel_state.get_context_parallel_world_size()
    return num_microbatches * replicas / context / max(count, 1)


def optimizer_scale(config: Any) -> float:
    """The factor that the optimiser puts on every loss (fp16's), known in the backward pass."""
    if config.grad_scale_func is None:
        return 1.0
    return float(config.grad_scale_func(torch.ones((), device=compute_device())))


def on_last_stage_once() -> bool:
    """Whether this rank speaks for its data-parallel share of the last stage's sums."""
    return (
        parallel_state.is_pipeline_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
    )


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add up what each rank contributes and give it to all.

    Args:
        values: [n] float64; zeros where another rank speaks for the same share.

    Collectives: one sum of n numbers over all ranks.
    """
    total = values.to(compute_device(), copy=True)
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def sum_from_last_stage(values: Tensor) -> Tensor:
    """Add up what the last stages hold over data-parallel ranks, and give it to every rank.

    Args:
        values: [n] float64; read on the last pipeline stage only, where tensor-parallel ranks
            hold the same.

    Collectives: one sum of n numbers over all ranks.
    """
    return sum_over_ranks(values if on_last_stage_once() else torch.zeros_like(values))
