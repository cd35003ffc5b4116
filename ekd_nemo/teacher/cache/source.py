"""A teacher whose outputs are read from a cache: a `TeacherSource` without a forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ekd_nemo.errors import DataError
from ekd_nemo.losses.pooling import PoolingKind, pool
from ekd_nemo.losses.sparse import SampledTargets, SparseTargets, TopKTargets
from ekd_nemo.sources.cache_manifest import SPARSE, CacheIdentity
from ekd_nemo.teacher.cache.reader import CacheReader
from ekd_nemo.teacher.cache.sparse_codec import SparseRows
from ekd_nemo.teacher.source import TeacherNeeds, TeacherOutputs

_T = TypeVar("_T")
READERS = 2  # threads that read ahead


class CachedBatch(Protocol):
    """What is read of a microbatch; see `parallel.batch.Microbatch`."""

    @property
    def sample_hashes(self) -> tuple[str, ...]:
        """[B]."""
        ...

    @property
    def segment_ids(self) -> Tensor:
        """[B, S] int64; -1 is padding."""
        ...

    @property
    def flat_segments(self) -> Tensor:
        """[S * B] int64."""
        ...

    @property
    def flat_valid(self) -> Tensor:
        """[S * B] bool: tokens that carry loss."""
        ...

    @property
    def num_segments(self) -> int:
        """Segments of all samples."""
        ...


@dataclass(frozen=True)
class Standing:
    """Where a rank of the student stands, as far as the teacher's outputs depend on it.

    Attributes:
        device: of the outputs.
        dtype: of hidden states; that of the head.
        stage: pipeline stage.
        last_stage: whether losses are made here.
        sequence_rank: place in the group that cuts sequences.
        sequence_ranks: size of that group; 1 without sequence parallelism.
    """

    device: torch.device
    dtype: torch.dtype
    stage: int = 0
    last_stage: bool = True
    sequence_rank: int = 0
    sequence_ranks: int = 1


@dataclass(frozen=True)
class Stored:
    """One sample, decoded as far as somebody needs it."""

    sparse: SparseRows | None = None
    final: Tensor | None = None
    layers: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
    embeddings: Tensor | None = None


class CachedTeacher:
    """Gives what a cache holds of each microbatch's samples.

    The samples of coming steps are read and decoded by threads while the student works. A sample
    that is not there, or is damaged, ends the run; nothing stands in for it.
    """

    def __init__(
        self,
        reader: CacheReader,
        standing: Standing,
        head: Tensor | None = None,
        coming: Iterator[Sequence[str]] | None = None,
        ahead: int = 2,
    ) -> None:
        """Hold the cache.

        Args:
            reader: of a cache that fits, see `sources.cache_fit`.
            standing: this rank's.
            head: [V_local, H_t], where the distribution is made from final hidden states.
            coming: the samples of this rank's training steps, step after step, from the next on.
            ahead: steps that are read in advance.
        """
        self._reader, self._standing, self._head = reader, standing, head
        self._coming, self._ahead = coming, ahead
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="teacher-cache")
        self._queue: list[tuple[list[str], TeacherNeeds, dict[str, Future[Stored]]]] = []

    @property
    def identity(self) -> CacheIdentity:
        """What the cache holds."""
        return self._reader.identity

    def outputs(self, batches: Sequence[CachedBatch], needs: TeacherNeeds) -> TeacherOutputs:
        """What is needed of each microbatch, as far as this cache holds it.

        A cache without what the distribution is made from leaves it out; a training that needs it is
        refused beforehand.

        Raises:
            DataError: names the sample that is missing or damaged.
        """
        wanted = self._here(needs)
        samples = [sample for batch in batches for sample in batch.sample_hashes]
        if not wanted:
            self._look_ahead(samples, wanted)
            return TeacherOutputs(layers={layer: [] for layer in wanted.layers})
        found = self._take(samples, wanted)
        rows = iter([found[sample] for sample in samples])
        stored = [[next(rows) for _ in batch.sample_hashes] for batch in batches]
        pairs = list(zip(batches, stored, strict=True))
        final = wanted.final or (wanted.distribution and self.identity.final)
        targets = wanted.distribution and self.identity.kind in SPARSE
        return TeacherOutputs(
            hidden=[self._states(b, [_present(each.final) for each in s]) for b, s in pairs]
            if final
            else [],
            head=self._head if wanted.distribution and self.identity.final else None,
            targets=[self._targets(b, [_present(each.sparse) for each in s]) for b, s in pairs]
            if targets
            else [],
            layers={
                layer: [self._states(b, [each.layers[layer] for each in s]) for b, s in pairs]
                for layer in wanted.layers
            },
            embeddings=[self._embeddings(b, s, wanted.pooling) for b, s in pairs]
            if wanted.pooling is not None
            else [],
        )

    def close(self) -> None:
        """Let go of the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _here(self, needs: TeacherNeeds) -> TeacherNeeds:
        """The part of the needs that this rank has."""
        standing = self._standing
        layers = {x: s for x, s in needs.layers.items() if standing.stage in s}
        if not standing.last_stage:
            return TeacherNeeds(layers=layers)
        holds = self.identity.final or (self.identity.kind in SPARSE and not needs.dense)
        return TeacherNeeds(
            distribution=needs.distribution and holds,
            layers=layers,
            pooling=needs.pooling,
            final=needs.final,
        )

    def _take(self, samples: list[str], needs: TeacherNeeds) -> dict[str, Stored]:
        """The decoded samples: those read ahead, the others now."""
        futures: dict[str, Future[Stored]] = {}
        if self._queue and self._queue[0][:2] == (samples, needs):
            futures = self._queue.pop(0)[2]
        for sample in samples:
            if sample not in futures:
                futures[sample] = self._pool.submit(self._read, sample, needs)
        self._look_ahead(samples, needs)
        return {sample: future.result() for sample, future in futures.items()}

    def _look_ahead(self, samples: list[str], needs: TeacherNeeds) -> None:
        """Start reading the steps after this one."""
        if self._coming is None or not needs:
            return
        while len(self._queue) < self._ahead:
            step = next(self._coming, None)
            if step is None:
                return
            names = list(step)
            if names == samples and not self._queue:
                continue  # the step that has just been asked for
            reads = {
                name: self._pool.submit(self._read, name, needs) for name in dict.fromkeys(names)
            }
            self._queue.append((names, needs, reads))

    def _read(self, sample: str, needs: TeacherNeeds) -> Stored:
        """Read and decode; runs in a thread."""
        reader, who = self._reader, self.identity
        if who.kind in SPARSE:
            return Stored(sparse=reader.sparse(sample))
        if who.kind == "embeddings":
            return Stored(embeddings=reader.dense(sample, 0))
        first = int(who.final)
        return Stored(
            final=reader.dense(sample, 0)
            if needs.distribution or needs.final or needs.pooling is not None
            else None,
            layers={x: reader.dense(sample, first + who.layers.index(x)) for x in needs.layers},
        )

    def _states(self, batch: CachedBatch, parts: Sequence[Tensor]) -> Tensor:
        """[S, B, H], zeros at padding; this rank's part of the sequence."""
        standing = self._standing
        whole = self._stacked(batch, parts)
        return whole.chunk(standing.sequence_ranks)[standing.sequence_rank]

    def _stacked(self, batch: CachedBatch, parts: Sequence[Tensor]) -> Tensor:
        rows, length = batch.segment_ids.shape
        out = torch.zeros(length, rows, parts[0].shape[1], dtype=self._standing.dtype)
        for row, part in enumerate(parts):
            out[: len(part), row] = part.to(out.dtype)
        return out.to(self._standing.device, non_blocking=True)

    def _targets(self, batch: CachedBatch, parts: Sequence[SparseRows]) -> SparseTargets:
        """Targets of all S * B tokens; padding has no entries."""
        rows, length = batch.segment_ids.shape
        shape = (length, rows, max(part.ids.shape[1] for part in parts))
        ids = torch.full(shape, -1, dtype=torch.int64)
        log_probs = torch.zeros(shape)
        draws = torch.zeros(shape)
        for row, part in enumerate(parts):
            place = (slice(len(part.ids)), row, slice(part.ids.shape[1]))
            ids[place] = torch.from_numpy(part.ids)
            log_probs[place] = torch.from_numpy(part.log_probs)
            if part.draws is not None:
                draws[place] = torch.from_numpy(part.draws).float()
        flat = [each.flatten(0, 1).to(self._standing.device) for each in (ids, log_probs, draws)]
        if self.identity.kind == "topk":
            return TopKTargets(flat[0], flat[1])
        samples = self.identity.samples
        assert samples is not None
        return SampledTargets(flat[0], flat[2] / samples, flat[1])

    def _embeddings(
        self, batch: CachedBatch, stored: Sequence[Stored], kind: PoolingKind | None
    ) -> Tensor:
        """[segments, H] in float32: as stored, or pooled from the final hidden states."""
        if self.identity.kind == "embeddings":
            found = torch.cat([_present(each.embeddings) for each in stored])
            if len(found) != batch.num_segments:
                raise DataError(
                    f"{self._reader.folder}: {len(found)} embeddings for {batch.num_segments} segments "
                    f"of sample {', '.join(batch.sample_hashes)}"
                )
            return found.to(self._standing.device)
        assert kind is not None
        hidden = self._stacked(batch, [_present(each.final) for each in stored])
        return pool(
            hidden.flatten(0, 1),
            batch.flat_segments,
            batch.num_segments,
            kind=kind,
            mask=batch.flat_valid,
        )


def _present(value: _T | None) -> _T:
    """A value that the needs say is there."""
    assert value is not None
    return value
