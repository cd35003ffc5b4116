"""Everything that a training step needs before Megatron's schedule begins.

The whole global batch of the rank is there first. Its tokens are counted over all data-parallel
ranks, the teacher runs over it, and the exact relation loss makes its first pass: so every
microbatch is scaled by global counts, and nothing but the student communicates in its schedule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from torch import Tensor

from ekd_nemo.errors import DataError
from ekd_nemo.losses.relation import LEAST, relation_count
from ekd_nemo.models.distill import DistillModel, StepInput, distribution
from ekd_nemo.models.pace import ATTENDED
from ekd_nemo.models.phases import PhaseClock
from ekd_nemo.models.terms import FEATURE, VALID, LossPlan, feature_name
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.normalise import global_sum, loss_scale, on_last_stage_once, optimizer_scale
from ekd_nemo.parallel.relations import relate, related_segments
from ekd_nemo.parallel.rng import preserved_rng
from ekd_nemo.parallel.schedule import forward_hidden
from ekd_nemo.parallel.taps import FeatureStep
from ekd_nemo.parallel.tokens import bounded_mask, own_tokens, subset_mask
from ekd_nemo.teacher.source import TeacherNeeds, TeacherOutputs, TeacherSource

TOKENS, SEGMENTS = "tokens", "segments"


@dataclass(frozen=True)
class Prepared:
    """A step before its schedule.

    Attributes:
        inputs: the microbatches with what their losses need.
        counts: denominators over the global batch by name; also all tokens, under "tokens", and
            the positions that they attend to, under "attended".
        tokens: non-padding tokens of this rank.
        tokens_valid: of those, the ones that carry loss.
        sums: terms that are known already and that this rank speaks for.
    """

    inputs: list[StepInput]
    counts: Mapping[str, int]
    tokens: int
    tokens_valid: int
    sums: Mapping[str, float]


class Preparing:
    """Prepares steps of one plan."""

    def __init__(self, plan: LossPlan, seed: int, phases: PhaseClock) -> None:
        """Hold what all steps share."""
        self._plan, self._seed, self._phases = plan, seed, phases

    def step(
        self,
        chunks: Sequence[DistillModel],
        batches: Sequence[Microbatch],
        teacher: TeacherSource | None,
    ) -> Prepared:
        """Count, ask the teacher, and relate; all ranks together.

        Raises: DataError if the global batch has too few sequences for its relations.
        """
        masks = self._feature_masks(batches)
        local = self._local_counts(batches, masks)
        counts = self._global_counts(local)
        taught = TeacherOutputs()
        needs = self._needs(chunks[0])
        if teacher is not None and needs:
            with self._phases.phase("teacher_forward"):
                taught = teacher.outputs(batches, needs)
        self._begin_features(chunks, masks, taught, counts)
        gradients, sums = self._relate(chunks, batches, taught, counts)
        token_relations = {
            settings: weight * loss_scale(counts[self._plan.relation_name(settings)], len(batches))
            for settings, weight in self._plan.token_relations.items()
        }
        inputs = [
            StepInput(
                batch,
                loss_scale(counts[VALID], len(batches)),
                *distribution(taught, index),
                embedding_gradient=gradients[index] if gradients else None,
                token_relations=token_relations,
            )
            for index, batch in enumerate(batches)
        ]
        return Prepared(inputs, counts, local[TOKENS], local[VALID], sums)

    def feature_sums(self, chunk: DistillModel) -> dict[str, float]:
        """The feature terms that this rank speaks for, once the schedule has ended."""
        section = self._plan.objective.feature
        if section is None or chunk.taps is None or not chunk.taps.pairs:
            return {}
        sums = chunk.taps.end()
        if chunk.sequence_group is None and parallel_state.get_tensor_model_parallel_rank() != 0:
            return {}
        return {feature_name(section, pair): float(sums[pair.key]) for pair in chunk.taps.pairs}

    def _needs(self, model: DistillModel) -> TeacherNeeds:
        config = model.config
        return self._plan.needs(
            config.num_layers,
            config.pipeline_model_parallel_size,
            config.virtual_pipeline_model_parallel_size,
        )

    def _feature_masks(self, batches: Sequence[Microbatch]) -> list[Tensor]:
        section = self._plan.objective.feature
        if section is None:
            return []
        return [subset_mask(batch, self._seed, section.token_ratio) for batch in batches]

    def _local_counts(
        self, batches: Sequence[Microbatch], feature_masks: Sequence[Tensor]
    ) -> dict[str, int]:
        """This rank's part of every count that the data decide."""
        counts = {
            TOKENS: sum(int(batch.num_tokens) for batch in batches),
            VALID: sum(int(batch.num_valid) for batch in batches),
            FEATURE: sum(int(mask.sum()) for mask in feature_masks),
            ATTENDED: sum(_attended(batch) for batch in batches),
        }
        relation = self._plan.objective.relation
        if relation is not None and self._plan.batch_relations:
            kept = [related_segments(batch, relation.pooling) for batch in batches]
            counts[SEGMENTS] = sum(int(each.sum()) for each in kept)
        if relation is not None and self._plan.token_relations:
            sizes = [
                size
                for batch in batches
                for size in _kept_per_segment(batch, self._seed, relation.tokens)
            ]
            for settings in self._plan.token_relations:
                counts[self._plan.relation_name(settings)] = sum(
                    relation_count(size, settings) for size in sizes
                )
        return counts

    def _global_counts(self, local: Mapping[str, int]) -> dict[str, int]:
        counts = dict(zip(local, global_sum(list(local.values())), strict=True))
        for settings in self._plan.batch_relations:
            if counts[SEGMENTS] < LEAST[settings.kind]:
                raise DataError(
                    f"relation {settings.kind}: the global batch has {counts[SEGMENTS]} sequence(s); "
                    f"accepted: at least {LEAST[settings.kind]}"
                )
            counts[self._plan.relation_name(settings)] = relation_count(counts[SEGMENTS], settings)
        return counts

    def _begin_features(
        self,
        chunks: Sequence[DistillModel],
        masks: Sequence[Tensor],
        taught: TeacherOutputs,
        counts: Mapping[str, int],
    ) -> None:
        factor = self._plan.objective.weight_of("feature") * loss_scale(counts[FEATURE])
        for chunk in chunks:
            if chunk.taps is None or not chunk.taps.pairs:
                continue
            group = chunk.sequence_group
            tokens = [own_tokens(mask, group).nonzero().squeeze(1) for mask in masks]
            config = chunk.config
            chunk.taps.begin(
                FeatureStep(taught.layers, tokens, lambda c=config: factor * optimizer_scale(c))
            )

    def _relate(
        self,
        chunks: Sequence[DistillModel],
        batches: Sequence[Microbatch],
        taught: TeacherOutputs,
        counts: Mapping[str, int],
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Scaled gradients of the embeddings, and the relation sums that this rank speaks for."""
        relation = self._plan.objective.relation
        if relation is None or not self._plan.batch_relations:
            return [], {}
        parts = [chunk.module for chunk in chunks]
        with preserved_rng():
            embeddings = forward_hidden(parts, batches, chunks[-1].embeddings)
        if not parallel_state.is_pipeline_last_stage():
            return [], {}
        factors = {
            settings: weight * loss_scale(counts[self._plan.relation_name(settings)], len(batches))
            for settings, weight in self._plan.batch_relations.items()
        }
        group = parallel_state.get_data_parallel_group()
        related = relate(
            embeddings, taught.embeddings, batches, relation.pooling, factors, self._seed, group
        )
        speaks = on_last_stage_once() and parallel_state.get_data_parallel_rank() == 0
        sums = {name: float(value) for name, value in related.sums.items()} if speaks else {}
        return related.gradients, sums


def _attended(batch: Microbatch) -> int:
    """Positions that each token attends to, itself included, added up over all tokens."""
    numbers = batch.flat_segments
    lengths = torch.bincount(numbers[numbers >= 0], minlength=batch.num_segments)
    return int((lengths * (lengths + 1) // 2).sum())


def _kept_per_segment(batch: Microbatch, seed: int, per_segment: int) -> list[int]:
    kept = batch.flat_segments[bounded_mask(batch, seed, per_segment)]
    return torch.bincount(kept, minlength=batch.num_segments).tolist()
