"""The device of this process."""

import os

import torch


def take_device() -> None:
    """Make this rank's GPU the current one; to be called before anything else asks CUDA for something.

    Waiting for a device or asking for its memory opens it. Without this every rank of a node would
    open the first one as well: half a gigabyte each there, and an error where boards are exclusive
    to one process.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def compute_device() -> torch.device:
    """The current CUDA device, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
