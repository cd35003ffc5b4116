"""Messages between ranks that all know beforehand who sends what to whom."""

import torch.distributed as dist
from torch import Tensor


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
