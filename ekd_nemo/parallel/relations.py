"""The exact relation loss of a global batch, whichever ranks and microbatches hold it.

Two passes: embeddings of the whole global batch are made without a graph, the loss and its
gradient to every embedding are computed from all of them, and in the pass that trains, each
microbatch makes its own embeddings again and meets its part of that gradient
(`losses.relation.gradient_of_rows`). Last pipeline stage only.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ekd_nemo.losses.collectives import gather_rows_with_gradient, group_rank
from ekd_nemo.losses.pooling import PoolingKind, pool
from ekd_nemo.losses.relation import RelationSettings, relation_loss
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.tokens import own_tokens


def segment_embeddings(
    hidden: Tensor, batch: Microbatch, kind: PoolingKind, sequence_group: ProcessGroup | None
) -> Tensor:
    """One embedding for each segment of a microbatch, [segments, H], whole on every rank.

    Args:
        hidden: [S, B, H], or [S / ranks, B, H] with a sequence group.
        batch: the microbatch; its loss mask is read by "masked".
        kind: of pooling.
        sequence_group: ranks that hold other tokens; None without sequence parallelism.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    return pool(
        flat,
        own_tokens(batch.flat_segments, sequence_group),
        batch.num_segments,
        kind=kind,
        mask=own_tokens(batch.flat_valid, sequence_group),
        first_position=group_rank(sequence_group) * len(flat),
        sequence_group=sequence_group,
    )


def related_segments(batch: Microbatch, kind: PoolingKind) -> Tensor:
    """[segments] bool, on the CPU: those that pool at least one token."""
    if kind != "masked":
        return torch.ones(batch.num_segments, dtype=torch.bool)
    numbers = batch.flat_segments[batch.flat_valid]
    return torch.bincount(numbers, minlength=batch.num_segments).cpu() > 0


def segment_keys(batch: Microbatch) -> Tensor:
    """[segments, 2] int64, on the CPU: what identifies a segment wherever it is: sample, place."""
    keys = [
        (int(sample[:15], 16), place)
        for sample, count in zip(
            batch.sample_hashes, batch.segments_per_sample.tolist(), strict=True
        )
        for place in range(count)
    ]
    return torch.tensor(keys, dtype=torch.int64).reshape(-1, 2)


@dataclass(frozen=True)
class Related:
    """Outcome of the first pass.

    Attributes:
        gradients: for each microbatch [segments, H_s], float32; 0 for segments that take no part.
        sums: term -> sum over the pairs or triplets of the global batch; the same on every rank.
    """

    gradients: list[Tensor]
    sums: dict[str, Tensor]


def relate(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    batches: Sequence[Microbatch],
    pooling: PoolingKind,
    terms: Mapping[RelationSettings, float],
    seed: int,
    group: ProcessGroup | None,
) -> Related:
    """Loss over all segments of the global batch, and its gradient to this rank's own.

    Segments are put into an order of their own first, so that neither the draw of triplets nor the
    order of summation depends on the cut of the batch.

    Args:
        student: [segments, H_s] for each microbatch, without a graph.
        teacher: [segments, H_t] likewise.
        batches: this rank's microbatches.
        pooling: which segments take part.
        terms: relation -> factor of its sum in the gradient.
        seed: of the run; the draw of triplets depends on it and on the segments alone.
        group: data-parallel ranks, which hold the rest of the batch; None: nobody.

    Collectives: three gathers over `group`.

    Raises: DataError if there are too few segments for a pair or triplet.
    """
    keep = torch.cat([related_segments(batch, pooling) for batch in batches]).nonzero().squeeze(1)
    mine, theirs = torch.cat(list(student)), torch.cat(list(teacher))
    where = mine.device
    keys = torch.cat([segment_keys(batch) for batch in batches])[keep].to(where)
    keep = keep.to(where)
    all_keys, _ = gather_rows_with_gradient(keys, group)
    ours, start = gather_rows_with_gradient(mine[keep].double(), group)
    others, _ = gather_rows_with_gradient(theirs[keep].double(), group)
    order = _order(all_keys)
    leaf = ours[order].detach().requires_grad_()
    drawn = _draw(seed, all_keys[order])
    gradient, sums = torch.zeros_like(leaf), dict[str, Tensor]()
    for settings, factor in terms.items():
        parts = relation_loss(leaf, others[order], replace(settings, seed=drawn))
        gradient += factor * torch.autograd.grad(parts.total, leaf)[0]
        sums |= parts.sums
    unordered = torch.empty_like(gradient)
    unordered[order] = gradient
    own = torch.zeros(len(mine), mine.shape[1], dtype=torch.float32, device=where)
    own[keep] = unordered[start : start + len(keep)].float()
    return Related(list(own.split([batch.num_segments for batch in batches])), sums)


def _order(keys: Tensor) -> Tensor:
    """Indices that sort rows [N, 2] by the first column, then by the second."""
    by_place = keys[:, 1].argsort(stable=True)
    return by_place[keys[by_place, 0].argsort(stable=True)]


def _draw(seed: int, keys: Tensor) -> int:
    digest = hashlib.blake2b(keys.cpu().numpy().tobytes(), digest_size=7, salt=b"relation")
    digest.update(str(seed).encode())
    return int.from_bytes(digest.digest(), "little")
