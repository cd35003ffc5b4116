"""A distilling step against what it cannot do without: the teacher's forward pass and a fine-tuning step.

    python tools/bench/step.py                    the smoke pair, one rank, fp32, CPU
    python tools/bench/step.py --rounds 9         more rounds
    python tools/bench/step.py --methods response,feature
    python tools/bench/step.py --from-cache       the teacher's outputs read from a cache instead

In one process: Megatron's schedule, its gradient buffers and the product's own preparation of a
step; no optimiser (it costs each method the same). The teacher's forward pass includes its head:
logits of all tokens that carry loss, made in chunks and thrown away. For the exact relation loss
one forward pass of the student is added to what it is compared with. From a cache, what the smoke
recipes keep (64 ids a token, layers in 8 bits, embeddings), a step is compared with fine-tuning
alone; the threads that read and decode count. Every round times every piece, in CPU seconds of the
process, since others may run beside; a ratio is made within a round, and the median of the rounds
counts, with the least and the greatest beside it.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

TEACHER = Path("assets/teacher/smollm2-135m-instruct-q4")
KEEP = (0, 1, 24, 25, 26, 27, 28, 29)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {},
    "response": {"alpha": 0.9, "response": {}},
    "feature": {
        "alpha": 0.5,
        "feature": {
            "kind": "cosine",
            "pairs": [
                {"teacher_layer": 23, "student_layer": 1},
                {"teacher_layer": 26, "student_layer": 4},
                {"teacher_layer": 28, "student_layer": 6},
            ],
        },
    },
    "relation": {"alpha": 0.5, "relation": {"weight_angle": 2.0}},
}
TOP_K: dict[str, Any] = {"alpha": 0.9, "response": {"support": "top_k", "k": 64}}
CACHES: dict[str, dict[str, Any]] = {
    "response": {
        "kind": "topk",
        "k": 64,
        "temperature": 1.0,
        "min_probability": 6e-4,
        "probability_bits": 8,
    },
    "feature": {"kind": "hidden", "layers": (23, 26, 28), "storage": "int8"},
    "relation": {"kind": "embeddings", "pooling": "mean"},
}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, default=TEACHER)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", default="response,feature,relation")
    parser.add_argument("--from-cache", action="store_true")
    given = parser.parse_args()
    if not (given.teacher / "config.json").is_file():
        sys.exit(
            f"{given.teacher}: no such model; `make quickstart` makes it, --teacher names another"
        )
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    methods = given.methods.split(",")
    with tempfile.TemporaryDirectory() as folder:
        start(Path(folder), given.threads)
        batches = microbatches(given.samples, given.length, vocab_of(given.teacher))
        caches = Path(folder) if given.from_cache else None
        pieces = make_pieces(given.teacher, given.length, batches, methods, caches)
        times = measure(pieces, given.rounds)
    report(times, methods, sum(int(batch.num_tokens) for batch in batches), given)


def start(folder: Path, threads: int) -> None:
    """One rank with Megatron's groups."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from ekd_nemo.backend import cpu

    torch.set_num_threads(threads)
    store = dist.FileStore(str(folder / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(60))
    cpu.install()
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)


def vocab_of(teacher: Path) -> int:
    """The teacher's vocabulary."""
    from ekd_nemo.config.architecture import read_architecture

    return read_architecture(teacher).vocab_size


def microbatches(samples: int, length: int, vocab: int) -> list[Any]:
    """Random tokens, two segments a sample; every token but the segments' last carries loss."""
    import torch

    from ekd_nemo.parallel.batch import Microbatch

    draw = torch.Generator().manual_seed(1)
    half, found = length // 2, []
    for number in range(samples):
        tokens = torch.randint(vocab, (1, length), generator=draw)
        mask = torch.ones(1, length, dtype=torch.bool)
        mask[0, half - 1] = mask[0, -1] = False
        segments = (torch.arange(length) >= half).long()[None]
        positions = torch.arange(length)[None] % half
        found.append(
            Microbatch(tokens, tokens.roll(-1), mask, positions, segments, (f"{number:032x}",))
        )
    return found


def make_pieces(
    folder: Path, length: int, batches: list[Any], methods: list[str], caches: Path | None
) -> dict[str, Callable[[], None]]:
    """What is timed, by name; caches are made in their folder, if one is given."""
    import torch

    from ekd_nemo.config.architecture import read_architecture
    from ekd_nemo.models.frozen import shared_teacher
    from ekd_nemo.models.weights import FolderSource
    from ekd_nemo.parallel.schedule import forward_hidden
    from ekd_nemo.teacher.layout import Layout
    from ekd_nemo.teacher.source import TeacherNeeds

    arch = read_architecture(folder)
    teacher = shared_teacher(FolderSource(folder), Layout(1, 1, 1), "fp32", length)

    def teach() -> None:
        found = teacher.outputs(batches, TeacherNeeds(distribution=True))
        for hidden, batch in zip(found.hidden, batches, strict=True):
            rows = hidden.reshape(-1, hidden.shape[-1])[batch.flat_valid]
            for part in rows.split(256):
                torch.mm(part, found.head.t())  # type: ignore[union-attr]

    objectives = OBJECTIVES if caches is None else OBJECTIVES | {"response": TOP_K}
    students = {
        name: student(objectives[name], name, arch, folder, length) for name in ("sft", *methods)
    }
    teachers: dict[str, Any] = {"sft": None} | dict.fromkeys(methods, teacher)
    pieces: dict[str, Callable[[], None]] = {"teacher forward and head": teach}
    if caches is not None:
        pieces.clear()
        teachers |= {name: cached(caches / name, name, teacher, batches) for name in methods}
    for name, chunk in students.items():
        pieces[name] = stepper(chunk, batches, teachers[name])
    pieces["student forward"] = lambda: _drop(forward_hidden([students["sft"].module], batches))
    return pieces


def _drop(_: Any) -> None:
    return


def cached(folder: Path, method: str, teacher: Any, batches: list[Any]) -> Any:
    """What a method needs of the batches, made and written as `ekd cache build` does, and its reader."""
    import torch

    from ekd_nemo.models.cache_build import rows_of
    from ekd_nemo.sources.cache_manifest import CacheIdentity
    from ekd_nemo.teacher.cache.reader import CacheReader
    from ekd_nemo.teacher.cache.source import CachedTeacher, Standing
    from ekd_nemo.teacher.cache.writer import CacheWriter
    from ekd_nemo.teacher.source import VALIDATION

    vocab, width = teacher.outputs(batches[:1], VALIDATION).head.shape
    who = CacheIdentity(
        teacher="bench",
        tokenizer="bench",
        vocab_size=vocab,
        hidden_size=width,
        precision="fp32",
        **CACHES[method],
    )
    by_name = {batch.sample_hashes[0]: batch for batch in batches}
    writer = CacheWriter(folder, who, list(by_name))
    writer.begin()
    for block in writer.missing():
        writer.write(block, rows_of(who, teacher, [by_name[name] for name in writer.block(block)]))
    writer.finish()
    return CachedTeacher(CacheReader(folder), Standing(torch.device("cpu"), torch.float32))


def student(settings: dict[str, Any], name: str, arch: Any, folder: Path, length: int) -> Any:
    """The smoke student, with gradient buffers."""
    import torch
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    from ekd_nemo.config.objective import Objective
    from ekd_nemo.config.recipe import Parallel
    from ekd_nemo.models.config import decoder_config
    from ekd_nemo.models.distill import METHODS
    from ekd_nemo.models.terms import loss_plan
    from ekd_nemo.models.weights import FolderSource, LayerSubsetSource

    small = arch.with_layers(len(KEEP))
    objective = Objective.model_validate(settings)
    config = decoder_config(small, Parallel(), length, torch.float32)
    chunk = METHODS[name](config, None, loss_plan(objective, small, arch), 1)
    chunk.source = LayerSubsetSource(FolderSource(folder), KEEP)
    chunk.configure_model()
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
    chunk.module = DistributedDataParallel(config, settings, chunk.module)
    config.finalize_model_grads_func = finalize_model_grads
    chunk.train()
    return chunk


def stepper(chunk: Any, batches: list[Any], teacher: Any) -> Callable[[], None]:
    """A whole step but for the optimiser."""
    from contextlib import nullcontext
    from types import SimpleNamespace

    from megatron.core.pipeline_parallel import get_forward_backward_func

    from ekd_nemo.models.preparing import Preparing

    phases: Any = SimpleNamespace(phase=lambda _: nullcontext())
    preparing = Preparing(chunk.plan, 1, phases)
    reduction = chunk.training_loss_reduction

    def forward(data: Any, _part: Any) -> Any:
        item = next(data)
        return chunk.forward_step(item), lambda out: reduction.forward(item, out)

    def step() -> None:
        chunk.module.zero_grad_buffer()
        prepared = preparing.step([chunk], batches, teacher)
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter(prepared.inputs),
            model=chunk.module,
            num_microbatches=len(batches),
            seq_length=batches[0].tokens.shape[1],
            micro_batch_size=1,
            forward_only=False,
        )
        preparing.feature_sums(chunk)

    return step


def measure(pieces: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each piece in each of `rounds`, after one round to warm up."""
    found: dict[str, list[float]] = {name: [] for name in pieces}
    for _ in range(rounds + 1):
        for name, run in pieces.items():
            began = time.process_time()
            run()
            found[name].append(time.process_time() - began)
    return {name: times[1:] for name, times in found.items()}


def report(times: dict[str, list[float]], methods: list[str], tokens: int, given: Any) -> None:
    """Pieces and ratios: median, least and greatest of the rounds."""
    print(f"{tokens} tokens, {given.threads} thread(s), {given.rounds} rounds, CPU seconds")
    for name, found in times.items():
        print(f"  {name:26s} {_spread(found)}")
    for name in methods:
        beside = ["sft"] if given.from_cache else ["teacher forward and head", "sft"]
        if name == "relation":
            beside.append("student forward")
        needed = [sum(parts) for parts in zip(*map(times.__getitem__, beside), strict=True)]
        ratios = [mine / theirs for mine, theirs in zip(times[name], needed, strict=True)]
        print(f"{name:9s} / ({' + '.join(beside)}): {_spread(ratios)}")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
