"""Forward passes outside training: through Megatron's own schedule, so that stages may be split."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import (
    forward_backward_no_pipelining,
    forward_backward_pipelining_with_interleaving,
    forward_backward_pipelining_without_interleaving,
)
from torch import Tensor

from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.hidden import hidden_states


def forward_hidden(
    chunks: Sequence[Any],
    batches: Sequence[Microbatch],
    keep: Callable[[Tensor, Microbatch], Any] | None = None,
) -> list[Any]:
    """The final hidden states of every microbatch, without gradients.

    Every rank of the model calls this together. Nothing else communicates meanwhile, so it must
    not run inside another schedule.

    Args:
        chunks: the model's parts on this rank, one unless stages interleave.
        batches: at least one microbatch, all of one shape.
        keep: what to keep of a microbatch's final hidden states in their place.

    Returns:
        On the last pipeline stage one [S, B, H], or what `keep` makes of it, for each microbatch;
        elsewhere an empty list.
    """

    def step(batches_left: Any, model: Any) -> tuple[Tensor, Any]:
        batch = next(batches_left)

        def collect(output: Tensor, non_loss_data: bool = False) -> Any:
            assert non_loss_data
            return output if keep is None else keep(output, batch)

        return hidden_states(model, batch), collect

    size, length = batches[0].tokens.shape
    iterators = [iter(batches) for _ in chunks]
    with torch.no_grad():
        outputs = _schedule(len(chunks))(
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


def _schedule(num_chunks: int) -> Callable[..., list[Any]]:
    """Megatron's schedule for a model of so many parts; its own choice looks at the student alone."""
    if parallel_state.get_pipeline_model_parallel_world_size() == 1:
        return forward_backward_no_pipelining
    if num_chunks > 1:
        return forward_backward_pipelining_with_interleaving
    return forward_backward_pipelining_without_interleaving
