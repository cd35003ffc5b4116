"""Building a teacher's cache: the teacher's forward pass over packed data, in a layout of its own.

Plain Megatron-Core, no NeMo. Each data-parallel copy of the teacher makes blocks of its own; in it
the last stage's first tensor-parallel rank writes them.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor

from ekd_nemo.backend import cpu
from ekd_nemo.backend.device import compute_device, take_device
from ekd_nemo.config.recipe import Parallel, Recipe
from ekd_nemo.data.packed import PackedDataset
from ekd_nemo.data.progress import Report
from ekd_nemo.errors import LayoutError
from ekd_nemo.losses.collectives import gather_rows
from ekd_nemo.models.phases import PhaseClock
from ekd_nemo.models.stacking import stack
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.shared_teacher import SharedTeacher
from ekd_nemo.sources.cache_manifest import SPARSE, CacheIdentity
from ekd_nemo.teacher.cache.block import Row
from ekd_nemo.teacher.cache.encode import encode_sample
from ekd_nemo.teacher.cache.writer import CacheWriter
from ekd_nemo.teacher.source import TeacherNeeds, TeacherOutputs

LOGITS_BYTES = 128 << 20  # of the float64 distributions that exist at once
# Ranks wait for one another before the first block, while a killed build's blocks are checked, and after
# the last one, until the slowest copy of the teacher is done. With NCCL's usual ten minutes the waiting
# ranks would end a build that goes well.
WAIT_LIMIT = timedelta(days=1)
Place = tuple[PackedDataset, int]


def rows_at_once(recipe: Recipe) -> int:
    """Samples of a microbatch: with CUDA packed samples run one at a time, whatever the recipe trains with."""
    return 1 if torch.cuda.is_available() else recipe.train.micro_batch_size


def find_samples(folder: str, splits: Sequence[str]) -> dict[str, Place]:
    """Every distinct sample of the splits by its hash, in the order of the data."""
    found: dict[str, Place] = {}
    for split in splits:
        data = PackedDataset(folder, split)
        for index in range(len(data)):
            found.setdefault(data[index]["sample_hash"], (data, index))
    return found


@contextmanager
def teacher_ranks(parallel: Parallel) -> Iterator[int]:
    """Set up Megatron's groups on the ranks of this launch; yields how many there are.

    Raises: LayoutError if they hold no whole copies of the teacher.
    """
    cpu.install(nemo=False)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    replica = parallel.tensor * parallel.pipeline
    if world % replica:
        raise LayoutError(
            f"{world} ranks cannot hold copies of a teacher of tensor {parallel.tensor} x pipeline "
            f"{parallel.pipeline}; accepted: a multiple of {replica}"
        )
    take_device()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if world == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend, timeout=WAIT_LIMIT)
    try:
        parallel_state.initialize_model_parallel(parallel.tensor, parallel.pipeline)
        model_parallel_cuda_manual_seed(1234)
        yield world
        dist.barrier()
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def build_blocks(
    writer: CacheWriter,
    teacher: SharedTeacher,
    places: dict[str, Place],
    micro_batch_size: int,
    phases: PhaseClock,
    report: Report,
) -> None:
    """Make the blocks that this copy of the teacher has still to make; all its ranks together."""
    copy = parallel_state.get_data_parallel_rank()
    numbers = writer.missing(copy, parallel_state.get_data_parallel_world_size())
    dist.barrier()  # nobody writes before all have looked
    for number in numbers:
        names = writer.block(number)
        rows: list[Row] = []
        in_block = 0
        for group in _groups(names, micro_batch_size):
            batches = [_microbatch(places, each) for each in group]
            rows += rows_of(writer.identity, teacher, batches)
            seen = sum(int(batch.num_tokens) for batch in batches)
            report(sum(map(len, group)), seen)
            in_block += seen
        if _writes():
            writer.write(number, rows)
        phases.step(number + 1, in_block, 0)
    gather_described(writer)


def gather_described(writer: CacheWriter) -> None:
    """Give rank 0 what all ranks know of their blocks: a cache of terabytes is not read again for its manifest.

    Collectives: one gather; all ranks have written by then.
    """
    first = dist.get_rank() == 0
    found: list[Any] = [None] * dist.get_world_size()
    dist.gather_object(writer.described, found if first else None)
    for described in found if first else ():
        writer.described |= described


def _groups(names: Sequence[str], size: int) -> Iterator[list[list[str]]]:
    """Microbatches that go through the stages together: twice as many as there are stages.

    Those that do not fill a microbatch go alone: all of one pass have one shape.
    """
    batches = [list(names[start : start + size]) for start in range(0, len(names), size)]
    last = [batches.pop()] if len(batches[-1]) < size else []
    together = 2 * parallel_state.get_pipeline_model_parallel_world_size()
    for start in range(0, len(batches), together):
        yield batches[start : start + together]
    if last:
        yield last


def rows_of(
    identity: CacheIdentity, teacher: SharedTeacher, batches: Sequence[Microbatch]
) -> list[Row]:
    """The rows of some microbatches, on the rank that writes; none elsewhere."""
    last = parallel_state.get_pipeline_model_parallel_world_size() - 1
    outputs = teacher.outputs(
        batches,
        TeacherNeeds(
            distribution=identity.kind in SPARSE,
            layers=dict.fromkeys(identity.layers, (last,)),
            pooling=identity.pooling,
            final=identity.final,
        ),
    )
    if not parallel_state.is_pipeline_last_stage():
        return []
    rows: list[Row] = []
    for index, batch in enumerate(batches):
        for row in range(len(batch.tokens)):
            made = _row(identity, outputs, batch, index, row)
            rows += [made] if _writes() else []
    return rows


def _row(
    identity: CacheIdentity, outputs: TeacherOutputs, batch: Microbatch, index: int, row: int
) -> Row:
    count = int((batch.segment_ids[row] >= 0).sum())
    name = batch.sample_hashes[row]
    if identity.kind == "embeddings":
        first = int(batch.segments_per_sample[:row].sum())
        stop = first + int(batch.segments_per_sample[row])
        return encode_sample(name, count, identity, dense=[outputs.embeddings[index][first:stop]])
    if identity.kind == "hidden":
        parts = [outputs.hidden[index]] if identity.final else []
        parts += [outputs.layers[layer][index] for layer in identity.layers]
        return encode_sample(name, count, identity, dense=[part[:count, row] for part in parts])
    assert outputs.head is not None
    hidden = outputs.hidden[index][:count, row]
    return encode_sample(name, count, identity, logits=_logits(hidden, outputs.head, identity))


def _logits(hidden: Tensor, head: Tensor, identity: CacheIdentity) -> Iterator[Tensor]:
    """[chunk, V] of the true vocabulary, whole on every tensor-parallel rank, chunk after chunk."""
    group = parallel_state.get_tensor_model_parallel_group()
    step = max(1, LOGITS_BYTES // (8 * identity.vocab_size))
    for start in range(0, len(hidden), step):
        local = (hidden[start : start + step] @ head.T).float()
        if group.size() > 1:
            local = gather_rows(local.T.contiguous(), group).T
        yield local[:, : identity.vocab_size]


def _microbatch(places: dict[str, Place], names: Sequence[str]) -> Microbatch:
    rows = [data[index] for data, index in map(places.__getitem__, names)]
    return Microbatch.of(stack(rows), compute_device())


def _writes() -> bool:
    """Whether this rank writes its copy's blocks."""
    first = parallel_state.get_tensor_model_parallel_rank() == 0
    return first and parallel_state.is_pipeline_last_stage()
