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
    """Distillation of the output distribution at temperature T.

    `forward_kl` T^2 * KL(teacher || student), `reverse_kl` T^2 * KL(student || teacher), `jsd` the
    generalised Jensen-Shannon divergence of `beta`, `total_variation`. `support` says what of
    the teacher's distribution is compared: all of it, its `k` likeliest ids with the rest as one bucket,
    or `k` ids drawn from it.
    """

    kind: Literal["forward_kl", "reverse_kl", "jsd", "total_variation"] = "forward_kl"
    temperature: PositiveFloat = 1.0
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    support: Literal["dense", "top_k", "sampled"] = "dense"
    k: PositiveInt = 64
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _fits_itself(self) -> "ResponseLoss":
        if self.support == "sampled" and (self.kind != "forward_kl" or self.temperature != 1.0):
            raise ValueError("support sampled goes with kind forward_kl and temperature 1")
        return self


class FeaturePair(Strict):
    """One teacher layer that one student layer imitates; numbers count from 0, outputs of the layer."""

    teacher_layer: Count
    student_layer: Count
    weight: Weight = 1.0


class FeatureLoss(Strict):
    """Distillation of hidden states.

    Without `pairs` a default layer map is made from both depths. `projector` is a trained linear map from
    the student's to the teacher's width, one for each pair, left out of the export; `none` needs equal
    widths.
    """

    pairs: Annotated[tuple[FeaturePair, ...], Field(min_length=1)] | None = None
    kind: Literal["mse", "cosine"] = "mse"
    token_ratio: Fraction = 1.0
    projector: Literal["linear", "none"] = "linear"
    weight: Weight = 1.0


class RelationLoss(Strict):
    """Distillation of the relations between embeddings.

    `batch`: between the pooled sequences of the global batch, exactly, which costs one more forward pass
    of the student. `tokens`: between sampled tokens inside each sequence.
    """

    scope: Literal["batch", "tokens"] = "batch"
    pooling: Literal["mean", "last", "masked"] = "mean"  # masked: over tokens that carry loss
    tokens: Annotated[int, Field(ge=3, le=512)] = 32  # drawn from each sequence, scope tokens
    weight_distance: Weight = 1.0
    weight_angle: Weight = 0.0
    weight_gram: Weight = 0.0
    weight: Weight = 1.0

    @model_validator(mode="after")
    def _compares_something(self) -> "RelationLoss":
        if not (self.weight_distance or self.weight_angle or self.weight_gram):
            raise ValueError(
                "relation takes a weight_distance, weight_angle or weight_gram above 0"
            )
        return self


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
    # Who does the element-wise part of cross-entropy and response, with the same result to rounding.
    kernels: Literal["torch", "triton"] = "torch"

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
