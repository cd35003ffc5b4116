"""What a teacher's cache costs and keeps: bytes a token, quality against dense, pace, a step from it.

    python tools/bench/cache.py [--samples 8] [--steps 5] [--only top] [--only draws]

The real teacher (tools/make_teacher.py) over real text (shards of `ekd data build`, as smoke_sft's), the
student eight of its layers. Each kind and setting is written by the cache's own writer and read by its
reader. Shown for each: bytes a token of the blocks; KL(teacher || what is stored, the tail spread evenly
over the ids left out), in nats a token; how far the gradients of the response loss lie from dense
ones, |g - g_dense| / |g_dense|, each token's (root mean square) and that of the head summed over all
tokens; tokens a second that one process reads, decodes and lays out for the loss. Then whole steps
(forward, loss, backward, AdamW) of the student: from caches, and plain cross-entropy, in turn.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from ekd_nemo.data.packed import PackedDataset
from ekd_nemo.losses.response import fused_linear_response
from ekd_nemo.losses.sparse import TopKTargets
from ekd_nemo.models.stacking import stack
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.sources.cache_manifest import CacheIdentity
from ekd_nemo.teacher.cache.encode import encode_sample
from ekd_nemo.teacher.cache.reader import CacheReader
from ekd_nemo.teacher.cache.source import CachedTeacher, Standing
from ekd_nemo.teacher.cache.writer import CacheWriter
from ekd_nemo.teacher.source import TeacherNeeds, TeacherOutputs

STUDENT_LAYERS = (0, 1, 24, 25, 26, 27, 28, 29)  # those of recipes/smoke_sft.yaml
BATCH = 4
TOPK = {"kind": "topk", "temperature": 1.0}
SAMPLED = {"kind": "sampled", "temperature": 1.0, "seed": 0, "probability_bits": 8}
HIDDEN = {"kind": "hidden", "final": True}


def top(k: int, bits: int, floor: float) -> dict[str, Any]:
    return TOPK | {"k": k, "probability_bits": bits, "min_probability": floor}


SETTINGS: dict[str, dict[str, Any]] = {
    "top-16, 16 bits": top(16, 16, 0.0),
    "top-32, 16 bits": top(32, 16, 0.0),
    "top-64, 16 bits": top(64, 16, 0.0),
    "top-64, 8 bits": top(64, 8, 0.0),
    "top-64, 8 bits, p >= 6e-4": top(64, 8, 6e-4),
    "top-64, 8 bits, p >= 3e-4": top(64, 8, 3e-4),
    "top-64, 8 bits, p >= 1e-3": top(64, 8, 1e-3),
    "16 draws": SAMPLED | {"samples": 16},
    "64 draws": SAMPLED | {"samples": 64},
    "256 draws": SAMPLED | {"samples": 256},
    "hidden fp32": HIDDEN | {"storage": "fp32", "zstd_level": 1},
    "hidden bf16": HIDDEN | {"storage": "bf16", "zstd_level": 1},
    "hidden int8": HIDDEN | {"storage": "int8", "zstd_level": 0},
    "embeddings": {"kind": "embeddings", "pooling": "mean"},
}
STEPPED = ("top-64, 8 bits, p >= 6e-4", "64 draws", "hidden bf16")


@dataclass(frozen=True)
class Sample:
    """A sample's final hidden states, without padding."""

    name: str
    hidden: Tensor  # [n, H]
    segments: Tensor  # [n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--only", action="append", help="settings whose name holds this text")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--teacher", default="assets/teacher/smollm2-135m-instruct-q4")
    parser.add_argument("--data", default="assets/data/python-docs-smollm2-256")
    given = parser.parse_args()
    teacher = AutoModelForCausalLM.from_pretrained(given.teacher, dtype=torch.float32).eval()
    data = PackedDataset(given.data, "train")
    batches = [
        Microbatch.of(stack([data[i] for i in range(start, start + BATCH)]), torch.device("cpu"))
        for start in range(0, given.samples, BATCH)
    ]
    head = teacher.lm_head.weight.detach()
    with torch.no_grad():
        samples = [sample for batch in batches for sample in run_teacher(teacher, batch)]
    student = student_of(teacher)
    with torch.no_grad():
        hidden = [student.model(batch.tokens).last_hidden_state for batch in batches]
    tokens = sum(len(sample.hidden) for sample in samples)
    print(f"{len(samples)} samples, {tokens} tokens, {torch.get_num_threads()} threads\n")
    print(
        "| kind | bytes a token | KL, nats | token gradients off | head gradient off | read, tokens/s |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        dense = gradients(batches, hidden, head, dense_outputs(batches, samples, head))
        chosen = {
            name: settings
            for name, settings in SETTINGS.items()
            if given.only is None or any(text in name for text in given.only)
        }
        for name, settings in chosen.items():
            path = Path(folder) / name.replace(" ", "_")
            size = write(path, settings, samples, head)
            pace = reading_pace(path, batches, head)
            row = [f"{size / tokens:.1f}", *quality(path, batches, hidden, samples, head, dense)]
            print(f"| {name} | {' | '.join(row)} | {pace:,.0f} |", flush=True)
        if given.steps:
            for name in STEPPED:
                write(Path(folder) / f"step {name}", SETTINGS[name], samples, head)
            steps(student, batches, Path(folder), head, given.steps)


def run_teacher(teacher: Any, batch: Microbatch) -> Iterator[Sample]:
    hidden = teacher.model(batch.tokens).last_hidden_state
    for row, name in enumerate(batch.sample_hashes):
        count = int((batch.segment_ids[row] >= 0).sum())
        yield Sample(name, hidden[row, :count], batch.segment_ids[row, :count])


def student_of(teacher: Any) -> Any:
    import copy

    student = copy.deepcopy(teacher)
    layers = [student.model.layers[index] for index in STUDENT_LAYERS]
    student.model.layers = torch.nn.ModuleList(layers)
    return student


def identity_of(settings: dict[str, Any], head: Tensor) -> CacheIdentity:
    return CacheIdentity.model_validate(
        {
            "teacher": "bench",
            "tokenizer": "bench",
            "vocab_size": head.shape[0],
            "hidden_size": head.shape[1],
            "precision": "fp32",
            **settings,
        }
    )


def write(path: Path, settings: dict[str, Any], samples: list[Sample], head: Tensor) -> int:
    """Write a cache; gives the bytes of its blocks and its index."""
    who = identity_of(settings, head)
    writer = CacheWriter(path, who, [sample.name for sample in samples])
    writer.begin()
    by_name = {sample.name: sample for sample in samples}
    for number in writer.missing():
        rows = [encoded(by_name[name], who, head) for name in writer.block(number)]
        writer.write(number, rows)
    manifest = writer.finish()
    return sum(block.bytes for block in manifest.blocks) + (path / "index.arrow").stat().st_size


def encoded(sample: Sample, who: CacheIdentity, head: Tensor) -> Any:
    count = len(sample.hidden)
    if who.kind == "hidden":
        return encode_sample(sample.name, count, who, dense=[sample.hidden])
    if who.kind == "embeddings":
        pooled = [
            sample.hidden[sample.segments == segment].mean(0)
            for segment in range(int(sample.segments.max()) + 1)
        ]
        return encode_sample(sample.name, count, who, dense=[torch.stack(pooled)])
    return encode_sample(sample.name, count, who, logits=sample.hidden @ head.T)


def open_teacher(path: Path, head: Tensor) -> CachedTeacher:
    return CachedTeacher(CacheReader(path), Standing(torch.device("cpu"), torch.float32), head)


def reading_pace(path: Path, batches: list[Microbatch], head: Tensor, rounds: int = 3) -> float:
    """Tokens a second of the best of some rounds over all batches, from the page cache."""
    kind = CacheReader(path).identity.kind
    needs = TeacherNeeds(
        distribution=kind != "embeddings", pooling="mean" if kind == "embeddings" else None
    )
    tokens = sum(int((batch.segment_ids >= 0).sum()) for batch in batches)
    teacher, times = open_teacher(path, head), list[float]()
    for _ in range(rounds):
        started = time.perf_counter()
        for batch in batches:
            teacher.outputs([batch], needs)
        times.append(time.perf_counter() - started)
    teacher.close()
    return tokens / min(times)


def dense_outputs(batches: list[Microbatch], samples: list[Sample], head: Tensor) -> TeacherOutputs:
    """What a live teacher would give."""
    rest = iter(samples)
    hidden: list[Tensor] = []
    for batch in batches:
        rows, length = batch.segment_ids.shape
        out = torch.zeros(length, rows, head.shape[1])
        for row in range(rows):
            sample = next(rest)
            out[: len(sample.hidden), row] = sample.hidden
        hidden.append(out)
    return TeacherOutputs(hidden=hidden, head=head)


def gradients(
    batches: list[Microbatch], hidden: list[Tensor], head: Tensor, taught: TeacherOutputs
) -> tuple[Tensor, Tensor]:
    """Gradients of the response term: to the student's hidden states [T, H] and to its head [V, H]."""
    weight, rows = head.clone().requires_grad_(), list[Tensor]()
    for index, batch in enumerate(batches):
        flat = hidden[index].transpose(0, 1).reshape(-1, head.shape[1]).requires_grad_()
        loss(batch, flat, weight, taught, index, 0.0, 1.0).backward()
        assert flat.grad is not None
        rows.append(flat.grad[batch.flat_valid])
    assert weight.grad is not None
    return torch.cat(rows), weight.grad


def loss(
    batch: Microbatch,
    hidden: Tensor,
    head: Tensor,
    taught: TeacherOutputs,
    index: int,
    weight_ce: float,
    weight_response: float,
) -> Tensor:
    dense = taught.hidden[index].reshape(-1, head.shape[1]) if taught.hidden else None
    return fused_linear_response(
        hidden,
        head,
        batch.flat_labels,
        batch.flat_valid,
        vocab_size=head.shape[0],
        teacher_hidden=dense,
        teacher_head=None if dense is None else taught.head,
        teacher_targets=taught.targets[index] if taught.targets else None,
        weight_ce=weight_ce,
        weight_response=weight_response,
        scale=1 / 1024,
    ).total


def quality(
    path: Path,
    batches: list[Microbatch],
    hidden: list[Tensor],
    samples: list[Sample],
    head: Tensor,
    dense: tuple[Tensor, Tensor],
) -> list[str]:
    teacher = open_teacher(path, head)
    if teacher.identity.kind == "embeddings":
        return ["n/a (no distribution)"] * 3
    taught = teacher.outputs(batches, TeacherNeeds(distribution=True))
    teacher.close()
    live = dense_outputs(batches, samples, head)
    kl = "n/a (draws)"
    if teacher.identity.kind != "sampled":
        kl = f"{divergence(batches, live, taught, head):.2g}"
    found = gradients(batches, hidden, head, taught)
    off = [float((f - d).norm() / d.norm()) for f, d in zip(found, dense, strict=True)]
    return [kl, *(f"{value:.3g}" for value in off)]


def divergence(
    batches: list[Microbatch], live: TeacherOutputs, taught: TeacherOutputs, head: Tensor
) -> float:
    """KL(teacher || stored), mean over the tokens that carry loss."""
    total, tokens = 0.0, 0
    for index, batch in enumerate(batches):
        mask = batch.flat_valid
        log_p = (live.hidden[index].reshape(-1, head.shape[1])[mask] @ head.T).log_softmax(-1)
        if taught.hidden:
            stored = taught.hidden[index].reshape(-1, head.shape[1])[mask] @ head.T
            log_q = stored.log_softmax(-1)
        else:
            log_q = spread(taught.targets[index], mask, head.shape[0])
        total += float((log_p.exp() * (log_p - log_q)).sum())
        tokens += int(mask.sum())
    return total / tokens


def spread(targets: Any, mask: Tensor, vocab: int) -> Tensor:
    """[T, V]: what is stored, and its tail in even shares."""
    assert isinstance(targets, TopKTargets)
    ids, log_probs = targets.ids[mask], targets.log_probs[mask]
    there = ids >= 0
    mass = torch.where(there, log_probs.exp(), 0.0).sum(-1, keepdim=True)
    share = ((1 - mass).clamp(min=1e-6) / (vocab - there.sum(-1, keepdim=True))).log()
    out = share.expand(-1, vocab).clone()
    rows = torch.arange(len(ids))[:, None].expand_as(ids)
    out[rows[there], ids[there]] = log_probs[there]
    return out


def steps(student: Any, batches: list[Microbatch], folder: Path, head: Tensor, rounds: int) -> None:
    """Whole steps in turn: cross-entropy alone, then from each cache."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    names = STEPPED
    teachers = {name: open_teacher(folder / f"step {name}", head) for name in names}
    needs = TeacherNeeds(distribution=True)

    def step(batch: Microbatch, teacher: CachedTeacher | None) -> None:
        taught = TeacherOutputs() if teacher is None else teacher.outputs([batch], needs)
        out = student.model(batch.tokens).last_hidden_state
        flat = out.transpose(0, 1).reshape(-1, head.shape[1])
        response = 0.0 if teacher is None else 0.9
        loss(batch, flat, student.lm_head.weight, taught, 0, 1 - response, response).backward()
        optimizer.step()
        optimizer.zero_grad()

    student.train()
    for parameter in student.parameters():
        parameter.requires_grad_()
    times: dict[str, list[float]] = {"plain SFT": [], **{name: [] for name in names}}
    actions: dict[str, Callable[[Microbatch], None]] = {
        "plain SFT": lambda batch: step(batch, None)
    }
    actions |= {name: lambda batch, t=t: step(batch, t) for name, t in teachers.items()}
    step(batches[0], None)
    for turn in range(rounds):
        for name, action in actions.items():
            started = time.process_time()
            action(batches[turn % len(batches)])
            times[name].append(time.process_time() - started)
    tokens = BATCH * batches[0].segment_ids.shape[1]
    print(f"\n{rounds} steps of {tokens} tokens each, in turn\n")
    print("| step | median, CPU s | over plain SFT, median of pairs (least to greatest) |")
    print("|---|---|---|")
    for name, found in times.items():
        ratios = sorted(a / b for a, b in zip(found, times["plain SFT"], strict=True))
        shown = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        print(f"| {name} | {statistics.median(found):.2f} | {shown} |")


if __name__ == "__main__":
    main()
