"""The objective of a recipe: `w_ce * CE + sum of w_i * L_i`.

`alpha` is shorthand for one family: `(1 - alpha) * CE + alpha * L`. Reductions: CE and response are means over the
valid tokens of the global batch; feature is the token mean of the mean over the hidden width; relation is the mean of
RKD's Huber over pairs or triplets of the global batch.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ekd_nemo.config.base import Count, PositiveFloat, PositiveInt, Strict, Weight

Fraction = Annotated[float, Field(gt=0, le=1)]


class ResponseLoss(Strict):
    """Distillation of the output distribution: `T^2 * KL(teacher || student)`."""

    kind: Literal["forward_kl"] = "forward_kl"
    temperature: PositiveFloat = 1.0
    weight: Weight = 1.0


class FeaturePair(Strict):
    """One teacher layer that one student layer imitates; numbers count from 0, outputs of the layer."""

    teacher_layer: Count
    student_layer: Count
    weight: Weight = 1.0


class FeatureLoss(Strict):
    """Distillation of hidden states through a trained linear projector per pair."""

    pairs: Annotated[tuple[FeaturePair, ...], Field(min_length=1)]
    kind: Literal["mse", "cosine"] = "mse"
    token_ratio: Fraction = 1.0
    weight: Weight = 1.0


class RelationLoss(Strict):
    """Distillation of the relations between pooled sequence embeddings of the global batch."""

    pooling: Literal["mean", "last"] = "mean"
    weight_distance: Weight = 1.0
    weight_angle: Weight = 0.0
    weight_gram: Weight = 0.0
    weight: Weight = 1.0


class Objective(Strict):
    """What is minimised: the families present, each with its weight."""

    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    w_ce: Weight | None = None
    response: ResponseLoss | None = None
    feature: FeatureLoss | None = None
    relation: RelationLoss | None = None
    chunk_tokens: PositiveInt | None = (
        None  # tokens whose logits exist at once; None: from a memory bound
    )

    @property
    def families(self) -> tuple[str, ...]:
        """The distillation families that the objective holds, in the order of the design."""
        return tuple(
            name for name in ("response", "feature", "relation") if getattr(self, name) is not None
        )

    @model_validator(mode="after")
    def _weights_are_plain(self) -> "Objective":
        if self.alpha is None:
            return self
        if len(self.families) != 1 or self.w_ce is not None:
            raise ValueError(
                "alpha mixes cross-entropy with one family: "
                "give exactly one of response, feature, relation, and no w_ce"
            )
        if getattr(self, self.families[0]).weight != 1.0:
            raise ValueError(
                f"alpha and {self.families[0]}.weight both weigh the same term: give one of them"
            )
        return self

    @property
    def weight_ce(self) -> float:
        """The weight of the cross-entropy."""
        if self.alpha is not None:
            return 1.0 - self.alpha
        return 1.0 if self.w_ce is None else self.w_ce

    def weight_of(self, family: str) -> float:
        """The weight of a family; 0 where the objective does not hold it."""
        section = getattr(self, family)
        if section is None:
            return 0.0
        return self.alpha if self.alpha is not None else section.weight
