"""The device of this process."""

import os

import torch

# That CUDA knows. A teacher's rank has one stream for each rank of the student that it sends to.
MOST_CONNECTIONS = "32"


def take_device() -> None:
    """Make this rank's GPU the current one; to be called before anything else asks CUDA for something.

    Waiting for a device or asking for its memory opens it. Without this every rank of a node would
    open the first one as well: half a gigabyte each there, and an error where boards are exclusive
    to one process.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def let_messages_wait() -> None:
    """Give messages that wait to be taken queues of their own on the device; before `take_device`.

    Cluster files set CUDA_DEVICE_MAX_CONNECTIONS to 1, for the order in which training overlaps its
    communication. All streams then share one queue: the second message to a rank, which waits until
    the first is taken, holds up all that is computed after it, and nothing is worked ahead.
    """
    os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = MOST_CONNECTIONS


def compute_device() -> torch.device:
    """The current CUDA device, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
