"""Relation distillation: how embeddings stand to one another, in the student and in the teacher.

Relations are functions of Gram matrices, so the widths of the two models may differ. They are
taken over all the embeddings given, which the caller gathers over the whole global batch
(`gather_rows_with_gradient`, or two passes with the gradient of the embeddings between them).
Everything here runs in float64: there are few embeddings, and distances of near ones cancel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ekd_nemo.errors import ConfigError, DataError
from ekd_nemo.losses.parts import LossParts

RelationKind = Literal["distance", "angle", "cosine_gram"]
LEAST = {"distance": 2, "angle": 3, "cosine_gram": 2}
# Vertices whose [N, N] matrices of cosines are held at once.
VERTEX_BLOCK = 8


@dataclass(frozen=True)
class RelationSettings:
    """Which relation, and how much of it is computed.

    Attributes:
        kind: distance: Huber between pairwise distances, each divided by their mean (RKD-D);
            angle: Huber between the cosines of the angles of triplets (RKD-A); cosine_gram:
            squared difference between pairwise cosines.
        max_exact: embeddings up to which all triplets are taken; beyond, `num_triplets` are drawn
            evenly, with replacement, so that sum / count is unbiased. Read by angle only.
        num_triplets: see above.
        seed: of the draw; derive it from the samples' hashes, not from the step.
    """

    kind: RelationKind = "distance"
    max_exact: int = 256
    num_triplets: int = 1 << 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.kind not in LEAST:
            raise ConfigError(f"relation kind is {self.kind!r}; accepted: {', '.join(LEAST)}")
        if self.max_exact < 1 or self.num_triplets < 1:
            raise ConfigError("relation max_exact and num_triplets must be >= 1")

    @property
    def name(self) -> str:
        """The term's name in logs, such as "relation_distance"."""
        return f"relation_{self.kind}"


def relation_loss(
    student: Tensor,
    teacher: Tensor,
    settings: RelationSettings = RelationSettings(),
    *,
    scale: float | Tensor = 1.0,
) -> LossParts:
    """Sum of a relation's loss over all pairs or triplets of distinct embeddings.

    Pairs are unordered. A triplet is a vertex and an unordered pair of others. (RKD's own code
    averages over all N^2 pairs and N^3 triplets, which holds as many zeros more; ratios of the two
    are (N - 1) / N and (N - 1)(N - 2) / N^2.)

    Args:
        student: [N, H_s], all embeddings of the global batch; gradients flow to every row.
        teacher: [N, H_t], no gradient.
        settings: the relation.
        scale: multiplies the total, not the sum.

    Returns:
        The sum under `settings.name` and the number of pairs or triplets.

    Raises:
        DataError: unlike numbers of embeddings, or too few for one pair or triplet.

    Source: Park et al. 2019 (RKD), arXiv:1904.05068, section 3.2.
    """
    num = len(student)
    if num != len(teacher):
        raise DataError(f"relation: {num} student and {len(teacher)} teacher embeddings")
    if num < LEAST[settings.kind]:
        raise DataError(
            f"relation {settings.kind}: {num} sequence(s) in the global batch; accepted: at least "
            f"{LEAST[settings.kind]}"
        )
    total, count = relation_sum(student, teacher.detach(), settings)
    sums = {settings.name: total.detach().double()}
    return LossParts(total * scale, sums, torch.tensor(count, device=student.device))


def relation_count(num: int, settings: RelationSettings) -> int:
    """Over how many pairs or triplets the sum of `num` embeddings runs."""
    if settings.kind != "angle":
        return num * (num - 1) // 2
    if num > settings.max_exact:
        return settings.num_triplets
    return num * (num - 1) * (num - 2) // 2


def relation_sum(
    student: Tensor, teacher: Tensor, settings: RelationSettings
) -> tuple[Tensor, int]:
    """The bare sum (with a gradient) and its count; 0 and 0 where there is no pair or triplet."""
    student, teacher = student.double(), teacher.double()
    num = len(student)
    if num < LEAST[settings.kind]:
        return student[:0].sum(), 0
    if settings.kind == "cosine_gram":
        return _cosine_gram_sum(student, teacher)
    if settings.kind == "distance":
        return _distance_sum(student, teacher)
    if num > settings.max_exact:
        return _sampled_angle_sum(student, teacher, settings), relation_count(num, settings)
    apply = cast(Callable[..., Tensor], _AngleSum.apply)
    return apply(_gram(student), _gram(teacher)), relation_count(num, settings)


def gradient_of_rows(embeddings: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient to `embeddings` [N, H] is `gradient`: the second of two passes.

    In the first pass embeddings are made without a graph, gathered over the global batch, and the
    gradient of the relation loss to them is kept; in the second each microbatch's own rows are
    made again, with a graph, and meet their part of it here. The scalar's value means nothing.
    """
    return (embeddings * gradient.to(embeddings.dtype)).sum()


def _gram(embeddings: Tensor) -> Tensor:
    """Inner products [N, N] of the centred embeddings, which have the same distances and angles."""
    centred = embeddings - embeddings.mean(0)
    return centred @ centred.t()


def _huber(gap: Tensor) -> Tensor:
    return torch.nn.functional.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="sum")


def _cosine_gram_sum(student: Tensor, teacher: Tensor) -> tuple[Tensor, int]:
    rows, columns = torch.triu_indices(len(student), len(student), 1, device=student.device)

    def cosines(embeddings: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(embeddings, dim=1)
        return (unit @ unit.t())[rows, columns]

    return (cosines(student) - cosines(teacher)).square().sum(), len(rows)


def _distance_sum(student: Tensor, teacher: Tensor) -> tuple[Tensor, int]:
    """By torch's pairwise kernel: no [pairs, H] tensor, and gradient 0 where a distance is 0."""
    ours = _over_mean(cast(Callable[..., Tensor], _Distances.apply)(student))
    theirs = _over_mean(torch.nn.functional.pdist(teacher))
    return _huber(ours - theirs), len(ours)


class _Distances(torch.autograd.Function):
    """torch's pairwise distances with a backward pass by one product of matrices.

    With CUDA torch's own makes an [N - 1, N, H] tensor, 137 GB in float64 for 2,048 embeddings of 4,096,
    and fails above 1,449 embeddings (aten/src/ATen/native/cuda/DistanceKernel.cu).
    """

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor) -> Tensor:
        """[N (N - 1) / 2], as `torch.nn.functional.pdist` orders them."""
        found = torch.nn.functional.pdist(embeddings)
        ctx.save_for_backward(embeddings, found)
        return found

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> Tensor:
        """The sum over j of g_ij (x_i - x_j) / d_ij, 0 where d_ij is 0."""
        embeddings, distances = ctx.saved_tensors
        num = len(embeddings)
        rows, columns = torch.triu_indices(num, num, 1, device=embeddings.device)
        weights = embeddings.new_zeros(num, num)
        weights[rows, columns] = torch.where(distances > 0, grad / distances, 0.0)
        weights += weights.t().clone()
        centred = embeddings - embeddings.mean(0)  # differences of smaller numbers
        return weights.sum(1, keepdim=True) * centred - weights @ centred


def _over_mean(distances: Tensor) -> Tensor:
    """Divide by the mean of the distances above 0, as RKD does."""
    positive = distances > 0
    mean = torch.where(positive, distances, 0.0).sum() / positive.sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _cosines_at(gram: Tensor, vertices: Tensor) -> Tensor:
    """Cosine [B, N, N] of the angle at each vertex between each two others; 0 where undefined."""
    square = gram.diagonal()
    at = gram[vertices]
    inner = gram[None] - at[:, :, None] - at[:, None, :] + square[vertices, None, None]
    lengths = (square[None] - 2.0 * at + square[vertices, None]).clamp(min=0.0)
    return inner * _inverse_root(lengths)[:, :, None] * _inverse_root(lengths)[:, None, :]


def _inverse_root(squares: Tensor) -> Tensor:
    """1 / sqrt(x), and 0 with gradient 0 where x is 0 to rounding."""
    floor = torch.finfo(squares.dtype).eps * squares.detach().amax().clamp(min=1e-30)
    positive = squares > floor
    return torch.where(positive, torch.where(positive, squares, 1.0).rsqrt(), 0.0)


class _AngleSum(torch.autograd.Function):
    """Sum over all triplets, a block of vertices at a time, its gradient made along with it."""

    @staticmethod
    def forward(ctx: Any, gram_s: Tensor, gram_t: Tensor) -> Tensor:
        leaf = gram_s.detach().requires_grad_(ctx.needs_input_grad[0])
        grad = torch.zeros_like(gram_s)
        total = gram_s.new_zeros(())
        num = len(gram_s)
        upper = torch.ones_like(gram_s, dtype=torch.bool).triu(1)
        for start in range(0, num, VERTEX_BLOCK):
            vertices = torch.arange(start, min(start + VERTEX_BLOCK, num), device=gram_s.device)
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                gap = _cosines_at(leaf, vertices) - _cosines_at(gram_t, vertices)
                part = _huber(gap[upper.expand_as(gap)])
            if ctx.needs_input_grad[0]:
                grad += torch.autograd.grad(part, leaf)[0]
            total += part.detach()
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_total: Tensor
    ) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * grad_total, None


def _sampled_angle_sum(student: Tensor, teacher: Tensor, settings: RelationSettings) -> Tensor:
    """Sum over drawn triplets (i; j, k), all three distinct, every one as likely as another."""
    num, draw = len(student), torch.Generator().manual_seed(settings.seed)
    size = (settings.num_triplets,)
    i = torch.randint(num, size, generator=draw)
    j = torch.randint(num - 1, size, generator=draw)
    k = torch.randint(num - 2, size, generator=draw)
    j = j + (j >= i)
    low, high = torch.minimum(i, j), torch.maximum(i, j)
    k = k + (k >= low)
    k = k + (k >= high)
    i, j, k = (index.to(student.device) for index in (i, j, k))
    gram_s, gram_t = _gram(student), _gram(teacher)
    return _huber(_triplet_cosines(gram_s, i, j, k) - _triplet_cosines(gram_t, i, j, k))


def _triplet_cosines(gram: Tensor, i: Tensor, j: Tensor, k: Tensor) -> Tensor:
    square = gram.diagonal()
    inner = gram[j, k] - gram[i, j] - gram[i, k] + square[i]
    to_j = (square[j] - 2.0 * gram[i, j] + square[i]).clamp(min=0.0)
    to_k = (square[k] - 2.0 * gram[i, k] + square[i]).clamp(min=0.0)
    return inner * _inverse_root(to_j) * _inverse_root(to_k)
