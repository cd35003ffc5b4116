"""How a hidden state travels from the teacher's ranks to the student's: fp32, bf16, or FP8 with scales."""

import torch
from torch import Tensor

from ekd_nemo.config.recipe import Precision

_E4M3_MAX = 448.0
_SCALE_BYTES = 4


def encoded_bytes(shape: torch.Size, transport: Precision) -> int:
    """Bytes of a message for a tensor of this shape [..., H]."""
    rows = shape[:-1].numel()
    each = {"fp32": 4 * shape[-1], "bf16": 2 * shape[-1], "fp8": shape[-1] + _SCALE_BYTES}
    return rows * each[transport]


def encode(values: Tensor, transport: Precision) -> Tensor:
    """A tensor [..., H] as bytes.

    `fp8` holds E4M3 numbers with one fp32 scale for each row of H, the row's largest magnitude being
    E4M3's largest number: the error of an element is at most 1/16 of itself, or 2^-10 of a 448th
    of the row's largest.
    """
    if transport == "fp32":
        return _bytes(values.float())
    if transport == "bf16":
        return _bytes(values.bfloat16())
    rows = values.float().reshape(-1, values.shape[-1])
    scales = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    scales = scales / _E4M3_MAX
    numbers = (rows / scales).clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn)
    return torch.cat([_bytes(numbers), _bytes(scales)])


def decode(message: Tensor, shape: torch.Size, transport: Precision, dtype: torch.dtype) -> Tensor:
    """The tensor that `encode` was given, in `dtype`."""
    if transport == "fp32":
        return message.view(torch.float32).reshape(shape).to(dtype)
    if transport == "bf16":
        return message.view(torch.bfloat16).reshape(shape).to(dtype)
    split = shape.numel()
    numbers = message[:split].view(torch.float8_e4m3fn).reshape(-1, shape[-1])
    scales = message[split:].clone().view(torch.float32)  # a view must begin at a multiple of 4
    return (numbers.float() * scales[:, None]).reshape(shape).to(dtype)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(-1).view(torch.uint8)
