"""The objective of a recipe as the terms that are computed, weighed and logged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.layer_map import default_pairs
from ekd_nemo.config.objective import FeatureLoss, Objective
from ekd_nemo.config.placement import stage_of_layer
from ekd_nemo.losses.relation import RelationKind, RelationSettings
from ekd_nemo.losses.response import ResponseSettings
from ekd_nemo.parallel.taps import Pair
from ekd_nemo.teacher.source import TeacherNeeds

SUFFIXES = {"dense": "", "top_k": "_topk", "sampled": "_sampled"}
VALID, FEATURE = "valid", "feature"


@dataclass(frozen=True)
class Term:
    """One sum and what becomes of it.

    Attributes:
        name: in logs.
        weight: of its mean in the total.
        over: name of the count that it is divided by.
    """

    name: str
    weight: float
    over: str


@dataclass(frozen=True)
class LossPlan:
    """What a model computes for an objective.

    Attributes:
        objective: of the recipe.
        pairs: the feature pairs, with the default layer map written out.
        teacher_width: H_t; None without a teacher.
        vocab_size: ids that both models have; others cost nothing and get no probability. A
            vocabulary may be stored with more rows than its tokenizer has ids.
    """

    objective: Objective
    pairs: tuple[Pair, ...]
    teacher_width: int | None
    vocab_size: int

    @cached_property
    def response(self) -> ResponseSettings:
        """Divergence and temperature of the response term."""
        section = self.objective.response
        if section is None:
            return ResponseSettings()
        return ResponseSettings(section.kind, section.temperature, section.beta)

    @cached_property
    def relations(self) -> Mapping[RelationSettings, float]:
        """The relations, each with its weight in the total."""
        section = self.objective.relation
        if section is None:
            return {}
        weight = self.objective.weight_of("relation")
        kinds: dict[RelationKind, float] = {
            "distance": section.weight_distance,
            "angle": section.weight_angle,
            "cosine_gram": section.weight_gram,
        }
        return {RelationSettings(kind): weight * each for kind, each in kinds.items() if each}

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """Every term, in the order of the log."""
        objective = self.objective
        found = [Term("ce", objective.weight_ce, VALID)]
        if objective.response is not None:
            name = self.response.name + SUFFIXES[objective.response.support]
            found.append(Term(name, objective.weight_of("response"), VALID))
        if objective.feature is not None:
            weight = objective.weight_of("feature")
            found += [
                Term(feature_name(objective.feature, pair), weight * pair.weight, FEATURE)
                for pair in self.pairs
            ]
        if objective.relation is not None:
            names = {each: self.relation_name(each) for each in self.relations}
            found += [Term(names[each], self.relations[each], names[each]) for each in names]
        return tuple(found)

    @cached_property
    def last_stage_terms(self) -> tuple[str, ...]:
        """The terms that the loss of a microbatch gives."""
        tokens = {self.relation_name(each) for each in self.token_relations}
        return tuple(t.name for t in self.terms if t.over == VALID or t.name in tokens)

    @property
    def batch_relations(self) -> Mapping[RelationSettings, float]:
        """Relations between the sequences of the global batch, with their weights."""
        section = self.objective.relation
        return self.relations if section is not None and section.scope == "batch" else {}

    @property
    def token_relations(self) -> Mapping[RelationSettings, float]:
        """Relations between tokens inside sequences, with their weights."""
        section = self.objective.relation
        return self.relations if section is not None and section.scope == "tokens" else {}

    def relation_name(self, settings: RelationSettings) -> str:
        """A relation's term, such as "relation_distance" or "token_relation_angle"."""
        return ("token_" if settings in self.token_relations else "") + settings.name

    def needs(self, num_layers: int, pipeline: int, virtual: int | None) -> TeacherNeeds:
        """What a training step asks of the teacher.

        Args:
            num_layers: of the student.
            pipeline: stages of the student.
            virtual: model chunks a stage, if they interleave.
        """
        layers: dict[int, set[int]] = {}
        for pair in self.pairs:
            stage = stage_of_layer(pair.student, num_layers, pipeline, virtual)
            layers.setdefault(pair.teacher, set()).add(stage)
        relation = self.objective.relation
        return TeacherNeeds(
            distribution=self.objective.response is not None,
            layers={layer: tuple(sorted(stages)) for layer, stages in sorted(layers.items())},
            pooling=relation.pooling if relation is not None and self.batch_relations else None,
            final=bool(self.token_relations),
        )

    def means(self, sums: Sequence[float], counts: Mapping[str, int]) -> dict[str, float]:
        """The terms' means over the global batch; those of feature pairs also put together."""
        found = {
            term.name: value / max(counts[term.over], 1)
            for term, value in zip(self.terms, sums, strict=True)
        }
        feature = self.objective.feature
        if feature is not None:
            found[f"feature_{feature.kind}"] = sum(
                pair.weight * found[feature_name(feature, pair)] for pair in self.pairs
            )
        return found

    def total(self, means: Mapping[str, float]) -> float:
        """The objective's value."""
        return sum(term.weight * means[term.name] for term in self.terms)


def feature_name(section: FeatureLoss, pair: Pair) -> str:
    """A pair's term, such as "feature_mse_22_12": teacher layer, student layer."""
    return f"feature_{section.kind}_{pair.key}"


def loss_plan(
    objective: Objective, student: Architecture, teacher: Architecture | None
) -> LossPlan:
    """The plan of an objective for a pair of models; see `config.objective` for what it may hold."""
    pairs: tuple[Pair, ...] = ()
    if objective.feature is not None:
        assert teacher is not None
        pairs = feature_pairs(objective.feature, teacher.num_layers, student.num_layers)
    if teacher is None:
        return LossPlan(objective, pairs, None, student.vocab_size)
    shared = min(student.vocab_size, teacher.vocab_size)
    return LossPlan(objective, pairs, teacher.hidden_size, shared)


def feature_pairs(section: FeatureLoss, num_teacher: int, num_student: int) -> tuple[Pair, ...]:
    """The pairs that a recipe names, or the default layer map's, from 0."""
    if section.pairs is not None:
        return tuple(Pair(p.teacher_layer, p.student_layer, p.weight) for p in section.pairs)
    return tuple(Pair(*layers) for layers in default_pairs(num_teacher, num_student))
