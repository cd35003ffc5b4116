"""AdamW on Megatron's optimiser, with warm-up and a cosine or constant schedule."""

import math
from typing import Any

from megatron.core.optimizer import OptimizerConfig
from nemo.lightning.pytorch.optim import LRSchedulerModule, MegatronOptimizerModule
from torch.optim.lr_scheduler import LambdaLR

from ekd_nemo.config.recipe import Optimizer


def lr_at(step: int, optimizer: Optimizer, steps: int) -> float:
    """The learning rate of a step.

    Args:
        step: from 0; step 0 already learns, at 1 / (warmup_steps + 1) of the peak.
        optimizer: peak, floor, warm-up and schedule.
        steps: of the whole run; the last one is at the floor under `cosine`.
    """
    warmup = optimizer.warmup_steps
    if step < warmup:
        return optimizer.lr * (step + 1) / (warmup + 1)
    if optimizer.schedule == "constant":
        return optimizer.lr
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * share


class StepSchedule(LRSchedulerModule):
    """Sets the learning rate at each step; norms and biases do not decay, as Megatron has it."""

    def __init__(self, optimizer: Optimizer, steps: int) -> None:
        """Follow `lr_at`."""
        super().__init__()
        self._optimizer, self._steps = optimizer, steps

    def scheduler(self, model: Any, optimizers: Any) -> dict[str, Any]:
        """Lightning's description of the schedule."""

        def share_of_peak(step: int) -> float:
            return lr_at(step, self._optimizer, self._steps) / self._optimizer.lr

        schedule = LambdaLR(optimizers, share_of_peak)
        return {
            "optimizer": optimizers,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 1},
        }


def optimizer_module(optimizer: Optimizer, steps: int, bf16: bool) -> MegatronOptimizerModule:
    """Megatron's AdamW as NeMo wraps it."""
    config = OptimizerConfig(
        optimizer="adam",
        lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.beta1,
        adam_beta2=optimizer.beta2,
        adam_eps=optimizer.eps,
        clip_grad=optimizer.clip_grad,
        bf16=bf16,
        use_distributed_optimizer=optimizer.distributed,
    )
    return MegatronOptimizerModule(config, lr_scheduler=StepSchedule(optimizer, steps))
