"""Random number state over a pass that must not be seen to have happened."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Put back torch's and Megatron's generators afterwards, so that the next pass draws the same.

    Without it dropout (LoRA's) would differ between the two passes of the exact relation loss.
    """
    cpu_state = torch.get_rng_state()
    device_state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    tracked = get_cuda_rng_tracker().get_states()
    try:
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if device_state is not None:
            torch.cuda.set_rng_state(device_state)
        get_cuda_rng_tracker().set_states(tracked)
