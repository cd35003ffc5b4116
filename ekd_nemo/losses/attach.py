"""Hangs a loss on a hidden state, so that it works on any pipeline stage and in recomputation."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

Scale = float | Tensor | Callable[[], float | Tensor]


def attach_loss(hidden: Tensor, loss: Tensor, scale: Scale = 1.0) -> Tensor:
    """Pass a hidden state on unchanged; its backward starts the loss's backward as well.

    What reaches the last stage need not know of the loss. Megatron's schedule scales only its own
    auxiliary losses, so whoever attaches gives the whole factor here: loss scale, microbatches,
    and the loss's own denominator against the one that the schedule divides by. Attach inside what
    is recomputed: outside it the hidden state has no graph. In the pass without gradients of a
    recomputed layer nothing is attached; the loss is then computed twice, so log it only where
    `torch.is_grad_enabled()`.

    Args:
        hidden: any shape; part of the student's forward pass.
        loss: scalar with a graph.
        scale: the gradient of the loss; a callable is asked in the backward pass, when a dynamic
            loss scale is known.

    Returns:
        A tensor equal to `hidden`, to be used in its place.

    Source: the mechanism of megatron-core 0.15.3, transformer/moe/moe_utils.py,
        MoEAuxLossAutoScaler; with the scale an argument in place of a class variable.
    """
    apply = cast(Callable[..., Tensor], _AttachLoss.apply)
    return apply(hidden, loss, scale)


class _AttachLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, scale: Scale) -> Tensor:
        if loss.dim():
            raise ValueError(
                f"attach_loss: the loss has shape {tuple(loss.shape)}; accepted: a scalar"
            )
        ctx.scale, ctx.like = scale, (loss.dtype, loss.device)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_hidden: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        scale = ctx.scale() if callable(ctx.scale) else ctx.scale
        dtype, device = ctx.like
        return grad_hidden, torch.as_tensor(scale, dtype=dtype, device=device).reshape(()), None
