"""Process groups of a teacher that has a layout of its own, beside Megatron's global ones."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from ekd_nemo.parallel.exchange import GROUP_LIMIT
from ekd_nemo.teacher.layout import Layout


def teacher_groups(layout: Layout) -> ProcessGroupCollection:
    """The groups that a forward pass needs, over all ranks of the default group.

    Every rank calls this together. The embedding groups are None: first and last stage fill a tied
    embedding from the same file, so nothing is summed over them.
    """
    assert layout.ranks == dist.get_world_size()
    tensor, pipeline = _mine(layout.tensor_groups()), _mine(layout.pipeline_groups())
    context = tensor if layout.tensor == 1 else pipeline
    if context.size() > 1:
        context = _mine([[each] for each in range(layout.ranks)])
    return ProcessGroupCollection(tp=tensor, pp=pipeline, cp=context, embd=None, pos_embd=None)


def _mine(groups: Sequence[list[int]]) -> Any:
    """Make all of the groups, on all ranks in one order; gives the one that holds this rank.

    Not with local synchronisation: torch 2.13 names such groups after their ranks, and a second
    group of the same ranks waits for ever.
    """
    found = None
    for ranks in groups:
        made = dist.new_group(ranks, timeout=GROUP_LIMIT)
        found = made if dist.get_rank() in ranks else found
    assert found is not None
    return found
