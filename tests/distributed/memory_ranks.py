"""One training step of the smoke pair on gloo ranks, its bytes counted: the product's models, losses and teachers."""

import contextlib
import gc
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Parallel, Recipe
from ekd_nemo.models.precision import DTYPES
from ekd_nemo.models.sides import Sides
from ekd_nemo.models.weights.source import tensor_shapes
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.teacher.cache.source import CachedTeacher
from ekd_nemo.teacher.joint import Joint
from ekd_nemo.teacher.layout import Layout
from tests.distributed.live_bytes import LiveBytes
from tests.distributed.memory_cases import LENGTH, STUDENT, TEACHER, Case, recipe
from tests.distributed.test_split_teacher import side
from tests.unit.teacher.caches import identity

Counts = dict[str, int]


class Same:
    """Weights that are all alike: bytes do not depend on values."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self._shapes = tensor_shapes(architecture)

    def get(self, name: str) -> Tensor:
        return torch.full(self._shapes[name], 0.01)

    def get_rows(self, name: str, start: int, stop: int) -> Tensor:
        return torch.full((stop - start, *self._shapes[name][1:]), 0.01)

    def get_columns(self, name: str, start: int, stop: int) -> Tensor:
        return torch.full((self._shapes[name][0], stop - start), 0.01)


def counted(rank: int, world: int, case: Case, folder: Path) -> Counts:
    """This rank's bytes by part at the fullest moment of a step."""
    from ekd_nemo.backend import cpu

    cpu.install()
    with LiveBytes() as live:
        return _case(recipe(case), folder / str(rank), live)


def _case(what: Recipe, folder: Path, live: LiveBytes) -> Counts:
    from megatron.core import parallel_state

    started(what.student.parallel)
    try:
        given = batches(what)
        teacher = _teacher(what, folder, live, given)
        step(what, live, teacher, given)
        found = Counter(live.fullest)
        if isinstance(teacher, CachedTeacher):
            found["buffers"] += _read_ahead(teacher)
        return dict(found)
    finally:
        parallel_state.destroy_model_parallel()


def split_counted(rank: int, world: int, what: Case, folder: Path) -> Counts:
    """The same where the teacher has ranks of its own: the last."""
    from megatron.core import parallel_state

    from ekd_nemo.backend import cpu
    from ekd_nemo.models.frozen import head_rows
    from ekd_nemo.models.sides import split_sides
    from ekd_nemo.parallel.split_teacher import Remote, SplitTeacher

    cpu.install()
    case = recipe(what)
    assert case.teacher is not None
    assert case.teacher.split is not None
    precision, sides = case.teacher.precision, split_sides(case, rank, world)
    assert sides is not None
    with side(sides.seat, folder) as joint, LiveBytes() as live:
        if sides.seat.side == "teacher":
            return _served(case, sides, joint, live)
        started(case.student.parallel)
        place, head = sides.student.place(sides.seat.rank), None
        with live.part("buffers"):
            if place.pipeline == sides.student.pipeline - 1:
                head = head_rows(Same(TEACHER), sides.student, place, precision)
        transport = case.teacher.split.transport
        remote = Remote(sides.teacher, TEACHER.num_layers, TEACHER.hidden_size, transport)
        teacher = SplitTeacher(joint, remote, sides.student, head, DTYPES[precision])
        step(case, live, teacher, batches(case))
        parallel_state.destroy_model_parallel()
        return dict(live.fullest)


def _served(what: Recipe, sides: Sides, joint: Joint, live: LiveBytes) -> Counts:
    from ekd_nemo.models.frozen import frozen_stage
    from ekd_nemo.models.terms import loss_plan
    from ekd_nemo.parallel.split_server import Pass, SplitServer

    assert what.teacher is not None
    assert what.teacher.split is not None
    started(what.teacher.parallel or what.student.parallel)
    with live.part("teacher_weights"):
        stage = frozen_stage(Same(TEACHER), sides.teacher, what.teacher.precision, LENGTH)
    gc.collect()
    live.restart()  # what loading took is not of a step
    split = what.teacher.split
    server = SplitServer(
        joint, stage, sides.student, split.transport, split.depth, contextlib.nullcontext
    )
    size = what.train.micro_batch_size
    count = what.train.global_batch_size // sides.student.data // size
    needs = loss_plan(what.objective, STUDENT, TEACHER).needs(
        STUDENT.num_layers, sides.student.pipeline, None
    )
    with live.part("buffers"):
        server.serve([Pass(count, needs, lambda unit: microbatch(size, unit.index))])
    return dict(live.fullest)


def started(cut: Parallel) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    parallel_state.initialize_model_parallel(
        cut.tensor,
        cut.pipeline,
        virtual_pipeline_model_parallel_size=cut.virtual_pipeline,
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(1234)


def _teacher(what: Recipe, folder: Path, live: LiveBytes, given: list[Microbatch]) -> Any:
    from ekd_nemo.config.placement import stands_alike
    from ekd_nemo.models.frozen import frozen_stage, head_rows, shared_teacher
    from ekd_nemo.parallel.relaid_teacher import RelaidTeacher

    if what.teacher is None or not what.objective.families:
        return None
    if what.teacher.placement == "cached":
        return _cached(what, folder, given)
    source, world, precision = Same(TEACHER), dist.get_world_size(), what.teacher.precision
    student = Layout.of(what.student.parallel, world)
    with live.part("teacher_weights"):
        if stands_alike(what, STUDENT, TEACHER):
            return shared_teacher(source, student, precision, LENGTH)
        cut = Layout.of(what.teacher.parallel or what.student.parallel, world)
        stage = frozen_stage(source, cut, precision, LENGTH)
    place, head = student.place(dist.get_rank()), None
    with live.part("buffers"):
        if place.pipeline == student.pipeline - 1:
            head = head_rows(source, student, place, precision)
    return RelaidTeacher(stage, student, head)


def _cached(what: Recipe, folder: Path, given: list[Microbatch]) -> CachedTeacher:
    """A cache of the step's samples, read two steps ahead as training does."""
    from megatron.core import parallel_state

    from ekd_nemo.teacher.cache.encode import encode_sample
    from ekd_nemo.teacher.cache.reader import CacheReader
    from ekd_nemo.teacher.cache.source import Standing
    from ekd_nemo.teacher.cache.writer import CacheWriter

    assert what.teacher is not None
    assert what.teacher.cache is not None
    build = what.teacher.cache.build
    assert build is not None
    changes: dict[str, Any] = {"vocab_size": TEACHER.vocab_size, "hidden_size": TEACHER.hidden_size}
    if build.kind == "topk":
        changes["k"] = build.k
    else:
        assert what.objective.feature is not None
        pairs = what.objective.feature.pairs or ()
        layers = tuple(sorted({pair.teacher_layer for pair in pairs}))
        changes |= {"final": False, "layers": layers, "storage": build.storage}
    who = identity(build.kind, **changes)
    samples = [name for batch in given for name in batch.sample_hashes]
    writer = CacheWriter(folder, who, samples)
    writer.begin()
    logits = torch.randn(LENGTH, TEACHER.vocab_size) if build.kind == "topk" else None
    dense = [torch.randn(LENGTH, TEACHER.hidden_size) for _ in who.layers or ()]
    for block in writer.missing():
        rows = [
            encode_sample(name, LENGTH, who, logits=logits, dense=dense)
            for name in writer.block(block)
        ]
        writer.write(block, rows)
    writer.finish()
    cut, rank = what.student.parallel, parallel_state.get_tensor_model_parallel_rank()
    standing = Standing(
        torch.device("cpu"),
        DTYPES[what.student.precision],
        stage=parallel_state.get_pipeline_model_parallel_rank(),
        last_stage=parallel_state.is_pipeline_last_stage(),
        sequence_rank=rank if cut.sequence_parallel else 0,
        sequence_ranks=cut.tensor if cut.sequence_parallel else 1,
    )
    return CachedTeacher(
        CacheReader(folder), standing, None, iter([samples, samples[::-1], samples])
    )


def _read_ahead(teacher: CachedTeacher) -> int:
    """Bytes of the samples that its threads have decoded for coming steps."""
    found = 0
    for _, _, futures in teacher._queue:
        for future in futures.values():
            stored = future.result()
            found += sum(each.nbytes for each in stored.layers.values())
            found += 0 if stored.final is None else stored.final.nbytes
            sparse = stored.sparse
            arrays = () if sparse is None else (sparse.ids, sparse.log_probs, sparse.draws)
            found += sum(each.nbytes for each in arrays if each is not None)
    teacher.close()
    return found


def student_chunks(what: Recipe, live: LiveBytes) -> tuple[list[Any], Any]:
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module

    from ekd_nemo.models.config import decoder_config
    from ekd_nemo.models.distill import METHODS
    from ekd_nemo.models.terms import loss_plan

    dtype = DTYPES[what.student.precision]
    config = decoder_config(
        STUDENT,
        what.student.parallel,
        LENGTH,
        dtype,
        recompute=what.student.recompute,
    )
    first = METHODS[what.method](config, None, loss_plan(what.objective, STUDENT, TEACHER), 1)
    first.source = Same(STUDENT)
    virtual = what.student.parallel.virtual_pipeline
    chunks = [first, *(first.reinit() for _ in range(1, virtual or 1))]
    for number, chunk in enumerate(chunks):
        with live.part("student_weights"):
            chunk.configure_model(number if virtual else None)
            if dtype != torch.float32:  # as NeMo's plugin for mixed precision does
                chunk.module = Float16Module(config, chunk.module)
        with live.part("gradients"):
            settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
            chunk.module = DistributedDataParallel(config, settings, chunk.module)
        chunk.module.zero_grad_buffer()
        chunk.train()
    config.finalize_model_grads_func = finalize_model_grads
    with live.part("optimizer"):
        optimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam", lr=1e-3, bf16=dtype == torch.bfloat16, params_dtype=dtype
            ),
            [chunk.module for chunk in chunks],
            use_gloo_process_groups=False,
        )
        optimizer.step()  # makes Adam's moments
    return chunks, optimizer


def batches(what: Recipe) -> list[Microbatch]:
    """This rank's share of a global batch."""
    from megatron.core import parallel_state

    size = what.train.micro_batch_size
    count = what.train.global_batch_size // parallel_state.get_data_parallel_world_size()
    return [microbatch(size, number) for number in range(count // size)]


def microbatch(size: int, number: int) -> Microbatch:
    """Samples of two segments; all tokens carry loss."""
    half = LENGTH // 2
    tokens = torch.randint(0, TEACHER.vocab_size, (size, LENGTH))
    mask = torch.ones(size, LENGTH, dtype=torch.bool)
    segments = (torch.arange(LENGTH) >= half).long().expand(size, -1).contiguous()
    positions = (torch.arange(LENGTH) % half).expand(size, -1).contiguous()
    names = tuple(f"{number * size + row:032x}" for row in range(size))
    return Microbatch(tokens, tokens.roll(-1, 1), mask, positions, segments, names)


class Phases:
    """Marks the teacher's pass for the count."""

    def __init__(self, live: LiveBytes) -> None:
        self._live = live

    def phase(self, _name: str) -> Any:
        return self._live.part("buffers")


def step(what: Recipe, live: LiveBytes, teacher: Any, given: list[Microbatch]) -> None:
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from ekd_nemo.models.preparing import Preparing

    chunks, optimizer = student_chunks(what, live)
    gc.collect()
    live.restart()
    plan = chunks[0].plan
    prepared = Preparing(plan, 1, Phases(live)).step(chunks, given, teacher)
    by_part = {id(chunk.module): chunk for chunk in chunks}

    def forward(data: Any, part: Any) -> tuple[Tensor, Any]:
        item, chunk = next(data), by_part[id(part)]
        reduce = chunk.training_loss_reduction

        def loss(out: Tensor) -> Any:
            with live.part("loss"):
                return reduce.forward(item, out)

        return chunk.forward_step(item), loss

    several = len(chunks) > 1
    with live.part("activations"):
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=[iter(prepared.inputs) for _ in chunks]
            if several
            else iter(prepared.inputs),
            model=[chunk.module for chunk in chunks] if several else chunks[0].module,
            num_microbatches=len(given),
            seq_length=LENGTH,
            micro_batch_size=what.train.micro_batch_size,
            forward_only=False,
        )
    with live.part("optimizer"):
        optimizer.step()
