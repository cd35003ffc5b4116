"""One normalisation for the whole global batch, whatever its cut.

A term's mean is its sum over the global batch divided by the tokens that carry it. Both the
division by the number of microbatches in Megatron's schedule (`forward_step_calc_loss`, the branch
of two outputs) and the division by the data-parallel size in its gradient buffers
(`DistributedDataParallel`, `gradient_scaling_factor`) are means of means. `loss_scale` cancels
both.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from ekd_nemo.backend.device import compute_device
from ekd_nemo.parallel.batch import Microbatch


def global_counts(batches: Sequence[Microbatch]) -> Tensor:
    """How much the global batch holds: int64 [2], all tokens and those that carry loss.

    Collectives: one sum of two integers over the data-parallel ranks.
    """
    counts = torch.stack(
        [sum(b.num_tokens for b in batches), sum(b.num_valid for b in batches)]  # pyright: ignore
    )
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size() > 1:
        dist.all_reduce(counts, group=group)
    return counts


def loss_scale(num_valid: int, num_microbatches: int) -> float:
    """What a microbatch's sum is multiplied by, so that gradients are those of the global mean.

    Args:
        num_valid: tokens of the global batch that carry loss; a batch without any costs nothing.
        num_microbatches: that the schedule divides by.
    """
    replicas = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    context = parallel_state.get_context_parallel_world_size()
    return num_microbatches * replicas / context / max(num_valid, 1)


def sum_from_last_stage(values: Tensor) -> Tensor:
    """Add up what the last stages hold over data-parallel ranks, and give it to every rank.

    Args:
        values: [n] float64; read on the last pipeline stage only, where tensor-parallel ranks
            hold the same.

    Collectives: one sum of n numbers over all ranks.
    """
    speaks = (
        parallel_state.is_pipeline_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
    )
    total = (values if speaks else torch.zeros_like(values)).to(compute_device(), copy=True)
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total
