"""A frozen teacher on the student's own ranks, in the student's layout."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.distributed import ProcessGroup

from ekd_nemo.backend.device import compute_device
from ekd_nemo.config.placement import stage_of_layer
from ekd_nemo.losses.collectives import group_size
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.exchange import Exchange
from ekd_nemo.parallel.hidden import HiddenStateGPT
from ekd_nemo.parallel.relations import segment_embeddings
from ekd_nemo.parallel.schedule import forward_hidden
from ekd_nemo.parallel.taps import recorded_layers
from ekd_nemo.parallel.tokens import sequence_group
from ekd_nemo.teacher.source import TeacherNeeds, TeacherOutputs


class SharedTeacher:
    """Runs the teacher forward over a step's microbatches, before the student's schedule.

    It is no part of the student's module tree: no gradients, no optimiser, no checkpoint.
    """

    def __init__(self, model: HiddenStateGPT) -> None:
        """Freeze a loaded model."""
        self._model = model.eval().requires_grad_(False)

    def outputs(self, batches: Sequence[Microbatch], needs: TeacherNeeds) -> TeacherOutputs:
        """What is needed of each microbatch, on the stages that need it.

        Memory: microbatches * S * B * H_t elements of the teacher's type for the final hidden
        states, if they are needed, and as many for each layer.

        Collectives: a layer that a student's stage needs and another stage of the teacher holds is
        sent from one to the other.
        """
        config, last = self._model.config, parallel_state.is_pipeline_last_stage()
        group = sequence_group(config)

        def keep(hidden: Tensor, batch: Microbatch) -> tuple[Tensor | None, Tensor | None]:
            pooled = None
            if needs.pooling is not None:
                pooled = segment_embeddings(hidden, batch, needs.pooling, group)
            return (hidden if needs.distribution or needs.final else None, pooled)

        with recorded_layers([self._model], needs.layers) as layers:
            found = forward_hidden([self._model], batches, keep)
        stages = parallel_state.get_pipeline_model_parallel_world_size()
        owners = {x: stage_of_layer(x, config.num_layers, stages) for x in needs.layers}
        like = (len(batches), _hidden_shape(config, batches[0], group), config.params_dtype)
        return TeacherOutputs(
            hidden=[hidden for hidden, _ in found if hidden is not None],
            head=self._model.head if last and needs.distribution else None,
            layers=_to_their_stages(layers, needs.layers, owners, like),
            embeddings=[pooled for _, pooled in found if pooled is not None],
        )


def _hidden_shape(
    config: Any, batch: Microbatch, group: ProcessGroup | None
) -> tuple[int, int, int]:
    rows, length = batch.tokens.shape
    return length // group_size(group), rows, config.hidden_size


def _to_their_stages(
    held: Mapping[int, list[Tensor]],
    wanted: Mapping[int, tuple[int, ...]],
    owners: Mapping[int, int],
    like: tuple[int, tuple[int, int, int], torch.dtype],
) -> dict[int, list[Tensor]]:
    """Layer -> its states, on the stages that want them; all ranks of a pipeline take part.

    Args:
        held: what this rank has recorded.
        wanted: layer -> stages.
        owners: layer -> the stage that holds it.
        like: how many tensors there are of a layer, their shape and type.
    """
    here, found = parallel_state.get_pipeline_model_parallel_rank(), dict[int, list[Tensor]]()
    group = parallel_state.get_pipeline_model_parallel_group()
    ranks = dist.get_process_group_ranks(group)
    count, shape, dtype = like
    exchange = Exchange(group)
    for layer, stages in wanted.items():
        owner = owners[layer]
        if here == owner:
            for stage in stages:
                for each in held[layer] if stage != owner else ():
                    exchange.send(each, ranks[stage])
            if owner in stages:
                found[layer] = list(held[layer])
        elif here in stages:
            found[layer] = [
                torch.empty(shape, dtype=dtype, device=compute_device()) for _ in range(count)
            ]
            for each in found[layer]:
                exchange.receive(each, ranks[owner])
    exchange.run()
    return found
