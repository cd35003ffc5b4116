"""Real training runs of a tiny random pair, each rank a process, NeMo imported once for all of them."""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import recipe_text
from ekd_nemo.data.packing import Sample
from ekd_nemo.data.shards import ShardWriter
from ekd_nemo.models.weights import RandomSource, tensor_shapes
from tests.forkserver import forkserver

LIMIT_S = 240.0
TEACHER = Architecture(
    family="llama",
    num_layers=4,
    hidden_size=64,
    ffn_size=128,
    num_heads=4,
    num_kv_groups=2,
    head_dim=16,
    vocab_size=500,
    rope_theta=10000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=True,
    qkv_bias=False,
    max_positions=128,
    initializer_range=0.15,  # wide: a teacher near the uniform distribution would teach nothing
)
STUDENT = replace(TEACHER, num_layers=2, hidden_size=32, ffn_size=64, head_dim=8)


@dataclass(frozen=True)
class Pair:
    """The folders of a pair and its data."""

    teacher: Path
    student: Path
    data: Path


def make_pair(folder: Path, tied: bool = True) -> Pair:
    """A random teacher with weights, a student's architecture, and packed random samples."""
    teacher = replace(TEACHER, tied_embeddings=tied)
    write_model(folder / "teacher", teacher, seed=11)
    write_config(folder / "student", replace(STUDENT, tied_embeddings=tied))
    write_shards(folder / "data")
    return Pair(folder / "teacher", folder / "student", folder / "data")


def write_config(folder: Path, arch: Architecture) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(arch.to_hf_config()))


def write_model(folder: Path, arch: Architecture, seed: int) -> None:
    write_config(folder, arch)
    source = RandomSource(arch, seed)
    tensors = {name: source.get(name) for name in tensor_shapes(arch)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_shards(folder: Path, length: int = 32, vocab: int = 500) -> None:
    """Samples of one to three segments, some of them short of `length`, some tokens without loss."""
    folder.mkdir(parents=True)
    splits = {"train": 40, "validation": 8}
    for split, count in splits.items():
        rng = np.random.default_rng(len(split))
        writer = ShardWriter(folder, split, vocab)
        for _ in range(count):
            sample = Sample(room=length)
            for _ in range(int(rng.integers(1, 4))):
                size = int(rng.integers(4, 11))
                walk = (rng.integers(0, vocab) + 3 * np.arange(size)) % vocab
                sample.add(walk.astype(np.int64), rng.random(size) < 0.8)
            writer.write(sample)
        writer.finish()
    manifest = {
        "schema_version": 1,
        "sequence_length": length,
        "tokenizer": {"pad_id": 0, "sha256": "5" * 64, "vocab_size": vocab},
        "splits": {split: {"samples": count} for split, count in splits.items()},
        "files": {p.name: {"bytes": p.stat().st_size} for p in sorted(folder.iterdir())},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def make_run(folder: Path, pair: Pair, method: str = "response", **changes: Any) -> Path:
    """A run directory with the recipe of a short training; `changes` as `section__key=value`."""
    data: dict[str, Any] = {
        "name": "tiny",
        "method": method,
        "seed": 5,
        "teacher": {"path": str(pair.teacher), "precision": "fp32"},
        "student": {
            "precision": "fp32",
            "init": {"source": "random", "path": str(pair.student)},
            "parallel": {"tensor": 1, "pipeline": 1},
        },
        "data": {"path": str(pair.data)},
        "optimizer": {"lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 1, "weight_decay": 0.1},
        "train": {
            "steps": 6,
            "global_batch_size": 4,
            "micro_batch_size": 1,
            "val_interval": 3,
            "val_samples": 8,
            "checkpoint_interval": 2,
        },
        "logging": {"tensorboard": False},
    }
    if method == "response":
        data["objective"] = {"alpha": 0.7, "response": {"temperature": 2.0}}
    for key, value in changes.items():
        *sections, name = key.split("__")
        place = data
        for section in sections:
            place = place[section]
        place[name] = value
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe_text(Recipe.model_validate(data)))
    return folder


class Job:
    """The ranks of one launch."""

    def __init__(self, run: Path, world: int, attempt: int, argv: Sequence[str] = ()) -> None:
        context = forkserver()
        self.run, port = run, _free_port()
        self.ranks: list[BaseProcess] = [
            context.Process(target=_rank, args=(run, rank, world, port, attempt, argv))
            for rank in range(world)
        ]
        for rank in self.ranks:
            rank.start()

    def wait(self, limit_s: float = LIMIT_S) -> list[int]:
        """Exit codes by rank; whatever still runs at the limit is killed and fails the test."""
        deadline = time.monotonic() + limit_s
        for rank in self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank in self.ranks if rank.is_alive()]
        self.kill()
        assert not late, f"{len(late)} ranks ran past {limit_s} s: {self.said()}"
        return [int(rank.exitcode or 0) for rank in self.ranks]

    def kill(self) -> None:
        """kill -9 for every rank and what it has started: Megatron's writer outlives its rank."""
        for rank in self.ranks:
            assert rank.pid
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
            rank.kill()
            rank.join()

    def signal(self, number: signal.Signals, rank: int) -> None:
        pid = self.ranks[rank].pid
        assert pid
        os.kill(pid, number)

    def until(self, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
        """Wait for something that the run does."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f"nothing happened: {self.said()}"
            assert any(rank.is_alive() for rank in self.ranks), f"ended early: {self.said()}"
            time.sleep(0.01)

    def said(self) -> str:
        """What the ranks wrote."""
        return "\n".join(p.read_text() for p in sorted(self.run.glob("rank-*.log")))


def train(run: Path, world: int = 1, attempt: int = 1) -> list[dict[str, Any]]:
    """Train to the end; gives the lines of `train.jsonl`."""
    job = Job(run, world, attempt)
    codes = job.wait()
    assert codes == [0] * world, f"exit codes {codes}:\n{job.said()}"
    return lines(run)


def lines(run: Path) -> list[dict[str, Any]]:
    path = run / "logs" / "train.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curve(found: list[dict[str, Any]], key: str) -> dict[int, float]:
    """A value by step, the highest attempt's."""
    ordered = sorted(found, key=lambda line: line["attempt"])
    return {line["step"]: line[key] for line in ordered if key in line}


@contextlib.contextmanager
def started(run: Path, world: int = 1, attempt: int = 1) -> Iterator[Job]:
    """A launch that is over when the block is."""
    job = Job(run, world, attempt)
    try:
        yield job
    finally:
        job.kill()


def _rank(run: Path, rank: int, world: int, port: int, attempt: int, argv: Sequence[str]) -> None:
    """One rank of the worker: training, unless `argv` says something else."""
    import torch

    from ekd_nemo import worker

    os.setsid()
    with (run / f"rank-{rank}.log").open("a", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ |= {"EKD_ATTEMPT": str(attempt)}
    os.environ.pop("RANK", None)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
        }
    torch.set_num_threads(1)
    sys.exit(worker.run(list(argv) or ["train", "--run", str(run)]))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
