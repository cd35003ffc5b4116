"""Which code does the element-wise part of the response loss: torch's operations or Triton's kernels."""

import importlib.util
import os

import torch

from ekd_nemo.errors import ConfigError
from ekd_nemo.losses.chunk import ElementWise, Problem
from ekd_nemo.losses.torch_chunk import TORCH


def element_wise(problem: Problem) -> ElementWise:
    """The implementation that a problem asks for; float64 is always torch's.

    Raises:
        ConfigError: Triton's is asked for and cannot run here.
    """
    if problem.kernels == "torch" or problem.acc == torch.float64:
        return TORCH
    check_triton(problem.hidden.device.type)
    # Triton is loaded where it is asked for, never by a run on torch's operations.
    from ekd_nemo.losses.triton_chunk import TRITON

    return TRITON


def check_triton(device_type: str) -> None:
    """Refuse Triton's kernels where they cannot run.

    Its interpreter takes tensors of the CPU: slow, for tests, where TRITON_INTERPRET=1 is set.

    Raises:
        ConfigError: the device is no CUDA device, or Triton is not installed.
    """
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            f"objective.kernels: triton needs a CUDA device, this is {device_type}; accepted: torch"
        )
    if importlib.util.find_spec("triton") is None:
        raise ConfigError("objective.kernels: triton is not installed here; accepted: torch")
