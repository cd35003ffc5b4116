"""Forward passes outside training: through Megatron's own schedule, so that stages may be split."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.hidden import hidden_states


def forward_hidden(chunks: Sequence[Any], batches: Sequence[Microbatch]) -> list[Tensor]:
    """The final hidden states of every microbatch, without gradients.

    Every rank of the model calls this together. Nothing else communicates meanwhile, so it must
    not run inside another schedule.

    Args:
        chunks: the model's parts on this rank, one unless stages interleave.
        batches: at least one microbatch, all of one shape.

    Returns:
        On the last pipeline stage one [S, B, H] for each microbatch; elsewhere an empty list.
    """

    def step(batches_left: Any, model: Any) -> tuple[Tensor, Any]:
        return hidden_states(model, next(batches_left)), _collect

    size, length = batches[0].tokens.shape
    iterators = [iter(batches) for _ in chunks]
    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=list(chunks) if len(chunks) > 1 else chunks[0],
            num_microbatches=len(batches),
            seq_length=length,
            micro_batch_size=size,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return list(outputs)


def _collect(output: Tensor, non_loss_data: bool = False) -> Tensor:
    assert non_loss_data
    return output
