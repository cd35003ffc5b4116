"""NeMo models whose loss is made from hidden states and the head: fine-tuning and response."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model
from nemo.collections.llm import GPTModel
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor

from ekd_nemo.config.objective import Objective
from ekd_nemo.losses.parts import LossParts
from ekd_nemo.losses.response import ResponseSettings, fused_linear_response
from ekd_nemo.models.config import DecoderConfig
from ekd_nemo.models.weights import TensorSource, load_weights
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.hidden import HiddenStateGPT, hidden_states
from ekd_nemo.teacher.source import TeacherOutputs


@dataclass(frozen=True)
class StepInput:
    """A microbatch of a training step, with what its loss needs.

    Attributes:
        batch: the microbatch.
        scale: multiplies the sum of the terms, see `parallel.normalise.loss_scale`.
        teacher_hidden: [S, B, H_t]; None without a teacher or where no loss is made.
        teacher_head: [V_local, H_t]; None likewise.
    """

    batch: Microbatch
    scale: float
    teacher_hidden: Tensor | None = None
    teacher_head: Tensor | None = None


class SumReduction(MegatronLossReduction):
    """Gives Megatron's schedule one scalar for each microbatch, and keeps the terms' sums."""

    def __init__(
        self, loss: Callable[[StepInput, Tensor], LossParts], terms: Sequence[str]
    ) -> None:
        """Make the loss with `loss`; `terms` names its sums in the order in which to keep them."""
        super().__init__()
        self._loss, self._terms = loss, tuple(terms)

    def forward(self, batch: StepInput, forward_out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The scaled scalar and the detached sums of the terms, float64 [terms]."""
        parts = self._loss(batch, forward_out)
        return parts.total, {"sums": torch.stack([parts.sums[name] for name in self._terms])}

    def reduce(self, losses_reduced_per_micro_batch: Sequence[dict[str, Tensor]]) -> Tensor:
        """The sums of the rank's microbatches, [terms]; not yet summed over data-parallel ranks."""
        return torch.stack([each["sums"] for each in losses_reduced_per_micro_batch]).sum(0)


class DistillModel(GPTModel):
    """What all methods share: weights from a source, batches that come prepared, hidden states out.

    Args:
        config: the student.
        optim: NeMo's optimiser module; None where nothing is trained.
        objective: the terms and their weights.
    """

    def __init__(self, config: DecoderConfig, optim: Any, objective: Objective) -> None:
        """Hold the settings; the model itself is built by `configure_model`."""
        super().__init__(config=config, optim=optim, tokenizer=None)
        self.objective = objective
        self.source: TensorSource | None = None
        self._reduction = [
            SumReduction(self.loss, self.terms)
        ]  # a list: no part of the module tree

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the sums that the loss gives."""
        return ("ce",)

    @property
    def gpt(self) -> HiddenStateGPT:
        """The bare Megatron model."""
        return unwrap_model(self.module)

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Build this rank's part, and fill it from `source` unless a checkpoint will."""
        fresh = not hasattr(self, "module")
        super().configure_model(vp_stage)
        if fresh and self.source is not None:
            rank = parallel_state.get_tensor_model_parallel_rank()
            size = parallel_state.get_tensor_model_parallel_world_size()
            load_weights([self.module], self.source, rank, size)

    def data_step(self, dataloader_iter: Any) -> StepInput:
        """The next prepared microbatch."""
        return next(dataloader_iter)

    def forward_step(self, batch: StepInput) -> Tensor:
        """Hidden states of a microbatch."""
        return hidden_states(self, batch.batch)

    @property
    def training_loss_reduction(self) -> SumReduction:
        """What Megatron's schedule calls on the last stage."""
        return self._reduction[0]

    def loss(self, item: StepInput, hidden: Tensor) -> LossParts:
        """The weighted terms of one microbatch, summed over its valid tokens and scaled.

        Args:
            item: the microbatch.
            hidden: [S, B, H], the student's, on the last stage.
        """
        weights = (self.objective.weight_ce, self.objective.weight_of("response"))
        return response_parts(self, item, hidden, self.settings, weights)

    @property
    def settings(self) -> ResponseSettings:
        """Divergence and temperature of the response term."""
        return ResponseSettings()

    def evaluate(
        self,
        batches: Sequence[Microbatch],
        hidden: Sequence[Tensor],
        teacher: TeacherOutputs | None,
    ) -> Tensor:
        """Sums over held-out tokens: float64 [ce, KL(teacher || student) at temperature 1].

        Last stage only. Without a teacher the KL's sum is nan.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for index, batch in enumerate(batches):
                item = StepInput(batch, 1.0, *_taught(teacher, index))
                found = response_parts(
                    self, item, hidden[index], ResponseSettings(), (1.0, 0.0)
                ).sums
                kl = found.get("response_forward_kl", torch.tensor(torch.nan))
                sums += torch.stack([found["ce"].double().cpu(), kl.double().cpu()])
        return sums


class SftModel(DistillModel):
    """Supervised fine-tuning: cross-entropy on the tokens that carry loss."""


class ResponseModel(DistillModel):
    """Response distillation: `T^2 * KL(teacher || student)`, mixed with cross-entropy."""

    @property
    def terms(self) -> tuple[str, ...]:
        """Cross-entropy and the divergence, in nats, the divergence with its T^2."""
        return ("ce", self.settings.name)

    @property
    def settings(self) -> ResponseSettings:
        """As the objective has them."""
        section = self.objective.response
        assert section is not None
        return ResponseSettings(kind=section.kind, temperature=section.temperature)


def response_parts(
    model: DistillModel,
    item: StepInput,
    hidden: Tensor,
    settings: ResponseSettings,
    weights: tuple[float, float],
) -> LossParts:
    """Cross-entropy and divergence of a microbatch from hidden states; last stage only."""
    arch = model.config.architecture
    group = parallel_state.get_tensor_model_parallel_group()
    sequence_parallel = model.config.sequence_parallel and group.size() > 1
    taught = item.teacher_hidden
    return fused_linear_response(
        hidden.reshape(-1, hidden.shape[-1]),
        model.gpt.head,
        item.batch.flat_labels,
        item.batch.flat_valid,
        vocab_size=arch.vocab_size,
        teacher_hidden=None if taught is None else taught.reshape(-1, taught.shape[-1]),
        teacher_head=item.teacher_head,
        settings=settings,
        weight_ce=weights[0],
        weight_response=weights[1],
        scale=item.scale,
        tp_group=group if group.size() > 1 else None,
        sequence_parallel=sequence_parallel,
        teacher_sequence_parallel=sequence_parallel,
        accumulate_into_main_grad=model.config.gradient_accumulation_fusion,
        chunk_tokens=model.objective.chunk_tokens,
    )


def step_inputs(
    batches: Sequence[Microbatch], scale: float, teacher: TeacherOutputs | None
) -> list[StepInput]:
    """The microbatches of a step, each with its share of the teacher's outputs."""
    return [StepInput(b, scale, *_taught(teacher, index)) for index, b in enumerate(batches)]


def _taught(teacher: TeacherOutputs | None, index: int) -> tuple[Tensor | None, Tensor | None]:
    if teacher is None or not teacher.hidden:
        return None, None
    return teacher.hidden[index], teacher.head
