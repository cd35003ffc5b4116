"""Counts the bytes of all storages that this process holds, by part, at the fullest moment."""

import gc
import time
import weakref
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# Products, which a processor without instructions for 16 bits takes a hundred times as long for.
_PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.mm.out, torch.ops.aten.bmm.default}


class LiveBytes(TorchDispatchMode):
    """Sees every operation of its thread, backward passes included, and follows the storages that they make.

    A storage belongs to the part in which it was made, for as long as anything holds it.
    Products of bfloat16 are made in float32, whose bytes are inside an operation.
    Not covered: what operations allocate and free inside, other threads, and message buffers of gloo.
    A message counts until gloo's thread has let go of it, which is now and then after its wait.

    Attributes:
        now: bytes by part.
        fullest: bytes by part when the sum was largest since `restart`.
    """

    def __init__(self, part: str = "rest") -> None:
        """Begin in a part."""
        super().__init__()
        self._part = part
        self._known: dict[int, weakref.finalize[Any, Any]] = {}
        self.now, self.fullest = Counter[str](), Counter[str]()

    @contextmanager
    def part(self, name: str) -> Generator[None]:
        """Storages made inside belong to this part."""
        before, self._part = self._part, name
        try:
            yield
        finally:
            self._part = before

    def settled(self, name: str, expected: int, patience_s: float = 60.0) -> int:
        """Bytes of a part once they are as expected, or those that stay.

        Gloo's threads let go of a message a moment after its wait has returned: how long a moment, the load decides.
        """
        until = time.monotonic() + patience_s
        gc.collect()
        while self.now[name] != expected and time.monotonic() < until:
            time.sleep(0.01)
            gc.collect()
        return self.now[name]

    def restart(self) -> None:
        """Forget the fullest moment."""
        self.fullest = self.now.copy()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it gives."""
        if func in _PRODUCTS and args[0].dtype == torch.bfloat16:
            out = _product(*args, **(kwargs or {}))
        else:
            out = func(*args, **(kwargs or {}))
        for each in tree_flatten(out)[0]:
            if isinstance(each, Tensor):
                self._count(each.untyped_storage(), func, each)
        return out

    def _count(self, storage: torch.UntypedStorage, func: Any, tensor: Tensor) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._known or not size:
            return
        self.now[self._part] += size
        if self.now.total() > self.fullest.total():
            self.fullest = self.now.copy()
        self._known[place] = weakref.finalize(storage, self._gone, place, size, self._part)

    def _gone(self, place: int, size: int, part: str) -> None:
        self.now[part] -= size
        del self._known[place]


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """The product of two matrices, or of batches of them, in float32, rounded."""
    made = torch.matmul(left.float(), right.float()).to(torch.bfloat16)
    return made if out is None else out.copy_(made)
