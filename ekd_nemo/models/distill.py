"""NeMo models whose loss is made from hidden states and the head, one class for each method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.utils import unwrap_model
from nemo.collections.llm import GPTModel
from nemo.lightning.megatron_parallel import MegatronLossReduction
from torch import Tensor
from torch.distributed import ProcessGroup

from ekd_nemo.config.recipe import Lora
from ekd_nemo.losses.parts import LossParts
from ekd_nemo.losses.relation import RelationSettings, gradient_of_rows
from ekd_nemo.losses.response import ResponseSettings, fused_linear_response
from ekd_nemo.losses.sparse import SparseTargets
from ekd_nemo.losses.token_relation import token_relation_loss
from ekd_nemo.models.config import DecoderConfig
from ekd_nemo.models.lora import add_adapters
from ekd_nemo.models.terms import LossPlan
from ekd_nemo.models.weights import TensorSource, load_weights
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.hidden import HiddenStateGPT, hidden_states
from ekd_nemo.parallel.relations import segment_embeddings
from ekd_nemo.parallel.taps import FeatureTaps, add_projectors
from ekd_nemo.parallel.tokens import bounded_mask, own_tokens, sequence_group
from ekd_nemo.teacher.source import TeacherOutputs


@dataclass(frozen=True)
class StepInput:
    """A microbatch of a training step, with what its loss needs on the last stage.

    Attributes:
        batch: the microbatch.
        scale: multiplies the sums over valid tokens, see `parallel.normalise.loss_scale`.
        teacher_hidden: [S, B, H_t]; None without a teacher or where no loss is made.
        teacher_head: [V_local, H_t]; None likewise.
        targets: sparse targets in place of both.
        embedding_gradient: [segments, H_s], scaled: of the exact relation loss.
        token_relations: relations inside sequences, with the whole factor of each one's sum.
    """

    batch: Microbatch
    scale: float
    teacher_hidden: Tensor | None = None
    teacher_head: Tensor | None = None
    targets: SparseTargets | None = None
    embedding_gradient: Tensor | None = None
    token_relations: dict[RelationSettings, float] = field(default_factory=dict)


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
        plan: the objective's terms.
        seed: of the run.
    """

    def __init__(self, config: DecoderConfig, optim: Any, plan: LossPlan, seed: int = 0) -> None:
        """Hold the settings; the model itself is built by `configure_model`."""
        super().__init__(config=config, optim=optim, tokenizer=None)
        self.plan, self.seed = plan, seed
        self.source: TensorSource | None = None
        self.lora: Lora | None = None
        self.taps: FeatureTaps | None = None
        self._reduction = [
            SumReduction(self.loss, plan.last_stage_terms)
        ]  # a list: no part of the module tree

    @property
    def gpt(self) -> HiddenStateGPT:
        """The bare Megatron model."""
        return unwrap_model(self.module)

    def reinit(self) -> "DistillModel":
        """Another part of the same model; NeMo asks for one for each further chunk of a stage."""
        other = type(self)(self.config, self.optim, self.plan, self.seed)
        other.source, other.lora = self.source, self.lora
        return other

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Build this rank's part, and fill it from `source` unless a checkpoint will."""
        fresh = not hasattr(self, "module")
        if vp_stage is None and self.config.virtual_pipeline_model_parallel_size is not None:
            vp_stage = 0  # NeMo numbers the further chunks alone, and asks each for its number
        self.vp_stage = vp_stage
        super().configure_model(vp_stage)
        if not fresh:
            return
        if self.source is not None:
            rank = parallel_state.get_tensor_model_parallel_rank()
            size = parallel_state.get_tensor_model_parallel_world_size()
            load_weights([self.module], self.source, rank, size)
        if self.lora is not None:
            add_adapters(self.module, self.lora, self.seed)
        self._add_features()

    def _add_features(self) -> None:
        section = self.plan.objective.feature
        if section is None:
            return
        if section.projector == "linear":
            assert self.plan.teacher_width is not None
            add_projectors(
                self.module,
                self.plan.pairs,
                self.plan.teacher_width,
                self.seed,
                sequence_parallel=self.config.sequence_parallel,
            )
        self.taps = FeatureTaps(self.module, self.plan.pairs, section.kind)

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
        """The weighted terms of one microbatch, summed and scaled.

        Args:
            item: the microbatch.
            hidden: [S, B, H], the student's, on the last stage.
        """
        objective = self.plan.objective
        weights = (objective.weight_ce, objective.weight_of("response"))
        compare = objective.response is not None
        parts = response_parts(self, item, hidden, self.plan.response, weights, compare=compare)
        total, sums = parts.total, dict(parts.sums)
        if item.embedding_gradient is not None:
            total = total + gradient_of_rows(
                self.embeddings(hidden, item.batch), item.embedding_gradient
            )
        for settings, factor in item.token_relations.items():
            found = self._token_relation(item, hidden, settings, factor)
            total, sums = total + found.total.to(total.dtype), sums | found.sums
        return LossParts(total, sums, parts.count)

    @property
    def sequence_group(self) -> ProcessGroup | None:
        """Ranks that hold other tokens of the same sequences; None without sequence parallelism."""
        return sequence_group(self.config)

    def embeddings(self, hidden: Tensor, batch: Microbatch) -> Tensor:
        """Pooled segments of a microbatch, [segments, H]; last stage only."""
        section = self.plan.objective.relation
        assert section is not None
        return segment_embeddings(hidden, batch, section.pooling, self.sequence_group)

    def _token_relation(
        self, item: StepInput, hidden: Tensor, settings: RelationSettings, factor: float
    ) -> LossParts:
        section, teacher, group = (
            self.plan.objective.relation,
            item.teacher_hidden,
            self.sequence_group,
        )
        assert section is not None
        assert teacher is not None
        keep = bounded_mask(item.batch, self.seed, section.tokens)
        return token_relation_loss(
            hidden.reshape(-1, hidden.shape[-1]),
            teacher.reshape(-1, teacher.shape[-1]),
            own_tokens(item.batch.flat_segments, group),
            own_tokens(keep, group),
            settings,
            scale=factor,
            sequence_group=group,
        )

    def evaluate(
        self,
        batches: Sequence[Microbatch],
        hidden: Sequence[Tensor],
        teacher: TeacherOutputs,
    ) -> Tensor:
        """Sums over held-out tokens: float64 [ce, KL(teacher || student) at temperature 1].

        Last stage only. Without a teacher's distribution the KL's sum is nan.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for index, batch in enumerate(batches):
                taught, head, _ = distribution(teacher, index)
                item = StepInput(batch, 1.0, taught, head)
                found = response_parts(
                    self, item, hidden[index], ResponseSettings(), (1.0, 0.0), compare=True
                ).sums
                kl = found.get("response_forward_kl", torch.tensor(torch.nan))
                sums += torch.stack([found["ce"].double().cpu(), kl.double().cpu()])
        return sums


class SftModel(DistillModel):
    """Supervised fine-tuning: cross-entropy on the tokens that carry loss."""


class ResponseModel(DistillModel):
    """Response distillation: a divergence from the teacher's output distribution."""


class FeatureModel(DistillModel):
    """Feature distillation: hidden states of paired layers, through a projector for each pair."""


class RelationModel(DistillModel):
    """Relation distillation: how sequences, or tokens in them, stand to one another."""


class CombinedModel(DistillModel):
    """Two or three families at once, each with its weight."""


METHODS: dict[str, type[DistillModel]] = {
    "sft": SftModel,
    "response": ResponseModel,
    "feature": FeatureModel,
    "relation": RelationModel,
    "combined": CombinedModel,
}


def response_parts(
    model: DistillModel,
    item: StepInput,
    hidden: Tensor,
    settings: ResponseSettings,
    weights: tuple[float, float],
    *,
    compare: bool,
) -> LossParts:
    """Cross-entropy and divergence of a microbatch from hidden states; last stage only.

    Args:
        model: the student's last part.
        item: the microbatch.
        hidden: [S, B, H].
        settings: of the divergence.
        weights: of cross-entropy and divergence.
        compare: whether to compute the divergence.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    sequence_parallel = model.sequence_group is not None
    taught = item.teacher_hidden if compare and item.teacher_head is not None else None
    return fused_linear_response(
        hidden.reshape(-1, hidden.shape[-1]),
        model.gpt.head,
        item.batch.flat_labels,
        item.batch.flat_valid,
        vocab_size=model.plan.vocab_size,
        teacher_hidden=None if taught is None else taught.reshape(-1, taught.shape[-1]),
        teacher_head=None if taught is None else item.teacher_head,
        teacher_targets=item.targets if compare else None,
        settings=settings,
        weight_ce=weights[0],
        weight_response=weights[1],
        scale=item.scale,
        tp_group=group if group.size() > 1 else None,
        sequence_parallel=sequence_parallel,
        teacher_sequence_parallel=sequence_parallel,
        accumulate_into_main_grad=model.config.gradient_accumulation_fusion,
        chunk_tokens=model.plan.objective.chunk_tokens,
        kernels=model.plan.objective.kernels,
    )


def distribution(
    teacher: TeacherOutputs, index: int
) -> tuple[Tensor | None, Tensor | None, SparseTargets | None]:
    """What a microbatch gets of the teacher's final hidden states, head and sparse targets."""
    return (
        teacher.hidden[index] if teacher.hidden else None,
        teacher.head,
        teacher.targets[index] if teacher.targets else None,
    )
