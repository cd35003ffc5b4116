"""A training step in one process and float64: transformers' Llama and losses written for reading."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, smooth_l1_loss

from ekd_nemo.config.objective import FeatureLoss, Objective, RelationLoss
from ekd_nemo.losses.subset import token_subset
from ekd_nemo.models.terms import Pair, feature_pairs
from ekd_nemo.parallel.taps import _first_weights
from tests.distributed.step_cases import SEED
from tests.unit.losses.references import divergence_reference


@dataclass
class Run:
    """One segment through one model; every row is a token."""

    logits: Tensor
    final: Tensor
    layers: list[Tensor]


@dataclass
class Segment:
    """One segment with what both models make of it."""

    labels: Tensor
    valid: Tensor
    places: Tensor
    sample_hash: str
    student: Run
    teacher: Run


@dataclass
class Reference:
    """Means of the terms and gradients of the objective, by Hugging Face's and the pairs' names."""

    means: dict[str, float]
    gradients: dict[str, Tensor]
    projectors: dict[str, Tensor]


def reference(
    objective: Objective, student: Path, teacher: Path, samples: list[dict[str, Any]]
) -> Reference:
    ours, theirs = _load(student), _load(teacher).requires_grad_(False)
    segments = [s for sample in samples for s in _segments(sample, ours, theirs)]
    valid = sum(int(s.valid.sum()) for s in segments)
    means: dict[str, Tensor] = {"ce": sum(_ce(s) for s in segments) / valid}  # type: ignore[dict-item]
    total = objective.weight_ce * means["ce"]
    if objective.response is not None:
        name = f"response_{objective.response.kind}"
        means[name] = sum(_response(objective, s) for s in segments) / valid  # type: ignore[assignment]
        total = total + objective.weight_of("response") * means[name]
    projectors: dict[str, Tensor] = {}
    if objective.feature is not None:
        found = _feature(objective.feature, segments, projectors)
        means |= found
        total = total + objective.weight_of("feature") * found[f"feature_{objective.feature.kind}"]
    if objective.relation is not None:
        found, mixed = _relation(objective.relation, segments)
        means |= found
        total = total + objective.weight_of("relation") * mixed
    total.backward()
    gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    return Reference(
        {name: float(value) for name, value in means.items()} | {"loss": float(total)},
        gradients,
        {key: weight.grad for key, weight in projectors.items() if weight.grad is not None},
    )


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def _segments(sample: dict[str, Any], ours: Any, theirs: Any) -> list[Segment]:
    """Each is run alone, so no mask can be wrong."""
    ids = sample["segment_ids"]
    places = [(ids == each).nonzero().squeeze(1) for each in range(int(ids.max()) + 1)]
    return [
        Segment(
            sample["labels"][here],
            sample["loss_mask"][here],
            here,
            sample["sample_hash"],
            _run(ours, sample["tokens"][here]),
            _run(theirs, sample["tokens"][here]),
        )
        for here in places
    ]


def _run(model: Any, tokens: Tensor) -> Run:
    layers: list[Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda _m, _a, out: layers.append((out[0] if isinstance(out, tuple) else out)[0])
        )
        for layer in model.model.layers
    ]
    final = model.model(tokens[None]).last_hidden_state[0]
    for handle in handles:
        handle.remove()
    return Run(model.lm_head(final), final, [x.reshape(len(tokens), -1) for x in layers])


def _ce(s: Segment) -> Tensor:
    return cross_entropy(s.student.logits[s.valid], s.labels[s.valid], reduction="sum")


def _response(objective: Objective, s: Segment) -> Tensor:
    section = objective.response
    assert section is not None
    t = section.temperature
    log_p, log_q = ((r.logits[s.valid] / t).log_softmax(-1) for r in (s.teacher, s.student))
    return t**2 * divergence_reference(log_p, log_q, section.kind, section.beta).sum()


def _feature(
    section: FeatureLoss, segments: list[Segment], projectors: dict[str, Tensor]
) -> dict[str, Tensor]:
    depths = len(segments[0].teacher.layers), len(segments[0].student.layers)
    keeps = [
        s.valid & token_subset(SEED, s.sample_hash, s.places, section.token_ratio)
        if section.token_ratio < 1
        else s.valid
        for s in segments
    ]
    count, found = sum(int(keep.sum()) for keep in keeps), dict[str, Tensor]()
    whole: Tensor = torch.zeros((), dtype=torch.float64)
    for pair in feature_pairs(section, *depths):
        weight = projectors.setdefault(pair.key, _projector(pair, segments[0]))
        value = torch.zeros((), dtype=torch.float64)
        for s, keep in zip(segments, keeps, strict=True):
            mine = s.student.layers[pair.student][keep] @ weight.t()
            other = s.teacher.layers[pair.teacher][keep]
            if section.kind == "mse":
                value = value + (mine - other).square().mean(-1).sum()
            else:
                value = value + (1 - cosine_similarity(mine, other, dim=-1)).sum()
        found[f"feature_{section.kind}_{pair.key}"] = value / count
        whole = whole + pair.weight * value / count
    return found | {f"feature_{section.kind}": whole}


def _projector(pair: Pair, s: Segment) -> Tensor:
    widths = s.student.final.shape[1], s.teacher.final.shape[1]
    return _first_weights(pair, *widths, SEED).double().requires_grad_()


def _relation(section: RelationLoss, segments: list[Segment]) -> tuple[dict[str, Tensor], Tensor]:
    if section.scope == "batch":
        rows = [_pooled(section.pooling, s) for s in segments]
        rows = [row for row in rows if row is not None]
        groups = [(torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows]))]
    else:
        keeps = [_drawn(s, section.tokens) for s in segments]
        groups = [
            (s.student.final[keep], s.teacher.final[keep])
            for s, keep in zip(segments, keeps, strict=True)
        ]
    kinds = {
        "distance": (section.weight_distance, _distance),
        "angle": (section.weight_angle, _angle),
        "cosine_gram": (section.weight_gram, _gram),
    }
    found, mixed = dict[str, Tensor](), torch.zeros((), dtype=torch.float64)
    for kind, (weight, function) in kinds.items():
        if weight:
            terms = [function(*group) for group in groups]
            prefix = "token_" if section.scope == "tokens" else ""
            value = sum(t[0] for t in terms) / sum(t[1] for t in terms)
            found[f"{prefix}relation_{kind}"] = value  # type: ignore[assignment]
            mixed = mixed + weight * value
    return found, mixed


def _pooled(kind: str, s: Segment) -> tuple[Tensor, Tensor] | None:
    if kind == "last":
        return s.student.final[-1], s.teacher.final[-1]
    rows = s.valid if kind == "masked" else torch.ones_like(s.valid)
    if not rows.any():
        return None
    return s.student.final[rows].mean(0), s.teacher.final[rows].mean(0)


def _drawn(s: Segment, per_segment: int) -> Tensor:
    ratio = torch.full((len(s.places),), min(1.0, per_segment / len(s.places)), dtype=torch.float32)
    return token_subset(SEED, s.sample_hash, s.places, ratio)


def _distance(ours: Tensor, theirs: Tensor) -> tuple[Tensor, int]:
    def relative(rows: Tensor) -> Tensor:
        gaps = [(a - b).norm() for a, b in itertools.combinations(rows, 2)]
        distances = torch.stack(gaps) if gaps else rows[:0].sum()[None][:0]
        return distances / distances.mean()

    pairs = len(ours) * (len(ours) - 1) // 2
    if not pairs:
        return ours.sum() * 0, 0
    return smooth_l1_loss(relative(ours), relative(theirs), reduction="sum"), pairs


def _angle(ours: Tensor, theirs: Tensor) -> tuple[Tensor, int]:
    num = len(ours)
    triplets = [
        (i, j, k)
        for i in range(num)
        for j, k in itertools.combinations(range(num), 2)
        if i not in (j, k)
    ]
    if not triplets:
        return ours.sum() * 0, 0
    i, j, k = torch.tensor(triplets).t()

    def cosines(rows: Tensor) -> Tensor:
        return cosine_similarity(rows[j] - rows[i], rows[k] - rows[i], dim=-1, eps=1e-12)

    return smooth_l1_loss(cosines(ours), cosines(theirs), reduction="sum"), len(triplets)


def _gram(ours: Tensor, theirs: Tensor) -> tuple[Tensor, int]:
    pairs = list(itertools.combinations(range(len(ours)), 2))
    if not pairs:
        return ours.sum() * 0, 0
    j, k = torch.tensor(pairs).t()
    gap = cosine_similarity(ours[j], ours[k]) - cosine_similarity(theirs[j], theirs[k])
    return gap.square().sum(), len(pairs)
