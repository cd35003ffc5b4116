"""Messages between ranks that all know beforehand who sends what to whom."""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ekd_nemo.backend.device import compute_device

# That a rank of a teacher may wait for another: as Megatron's own groups, not NCCL's ten minutes. One that sends to the
# student stands still while that one loads, validates or saves, and the others wait for it in their layers.
GROUP_LIMIT = timedelta(minutes=30)


def exchange_group() -> dist.ProcessGroup:
    """A group of all ranks of the default group, for exchanges in which some may have no part.

    NCCL connects a group at the first call on it, in which all its ranks must take part
    (`torch.distributed.batch_isend_irecv`); so they do here. In an exchange, a rank without messages
    would stay away, and one with messages wait for it, while others wait for both in their layers.

    Collectives: one sum of one number; all ranks call this together.
    """
    group = dist.new_group(list(range(dist.get_world_size())), timeout=GROUP_LIMIT)
    assert isinstance(group, dist.ProcessGroup)
    dist.all_reduce(torch.zeros(1, device=compute_device()), group=group)
    return group


class Exchange:
    """Messages that all start together; all have arrived when `run` returns."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        """Collect messages among the ranks of `group`; ranks go by their global number."""
        self._group = group
        self._operations: list[dist.P2POp] = []

    def send(self, tensor: Tensor, target: int) -> None:
        """Send to a rank."""
        self._operations.append(dist.P2POp(dist.isend, tensor.contiguous(), target, self._group))

    def receive(self, tensor: Tensor, source: int) -> None:
        """Fill `tensor` from a rank."""
        self._operations.append(dist.P2POp(dist.irecv, tensor, source, self._group))

    def run(self) -> None:
        """Do it all."""
        if self._operations:
            for work in dist.batch_isend_irecv(self._operations):
                work.wait()
