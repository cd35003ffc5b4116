"""Training steps to compare: objectives, layouts, and a small set that covers every pair of options."""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.objective import Objective
from ekd_nemo.config.recipe import Parallel, Recompute

SEED = 5
LENGTH, SAMPLES, VOCAB = 16, 16, 61
TEACHER = Architecture(
    family="llama",
    num_layers=8,
    hidden_size=48,
    ffn_size=64,
    num_heads=4,
    num_kv_groups=4,
    head_dim=12,
    vocab_size=VOCAB,
    rope_theta=10000.0,
    rope_scaling=None,
    norm_eps=1e-5,
    tied_embeddings=True,
    qkv_bias=False,
    max_positions=64,
    initializer_range=0.15,
)
STUDENT = replace(TEACHER, num_layers=4, hidden_size=32, ffn_size=40, head_dim=8)
UNTIED = replace(STUDENT, tied_embeddings=False)

PAIRS = [
    {"teacher_layer": 2, "student_layer": 0},
    {"teacher_layer": 7, "student_layer": 3, "weight": 0.5},
    {"teacher_layer": 2, "student_layer": 2, "weight": 2.0},
]
_RELATION = {"weight_distance": 1.0, "weight_angle": 0.7, "weight_gram": 0.3}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {},
    "forward_kl": {"alpha": 0.7, "response": {"temperature": 2.0}},
    "reverse_kl": {"w_ce": 0.5, "response": {"kind": "reverse_kl", "temperature": 1.5}},
    "jsd": {"w_ce": 0.5, "response": {"kind": "jsd", "beta": 0.3}},
    "total_variation": {"w_ce": 0.5, "response": {"kind": "total_variation"}},
    "feature_mse": {"w_ce": 0.5, "feature": {"pairs": PAIRS, "token_ratio": 0.5, "weight": 0.3}},
    "feature_cosine": {"w_ce": 0.5, "feature": {"kind": "cosine"}},
    "relation_mean": {"w_ce": 0.5, "relation": {**_RELATION, "weight": 3.0}},
    "relation_last": {"w_ce": 0.5, "relation": {"pooling": "last", "weight": 3.0}},
    "relation_masked": {"w_ce": 0.5, "relation": {**_RELATION, "pooling": "masked"}},
    "relation_tokens": {"w_ce": 0.5, "relation": {**_RELATION, "scope": "tokens", "tokens": 4}},
    "combined": {
        "w_ce": 0.3,
        "response": {"kind": "jsd", "weight": 0.5},
        "feature": {"pairs": PAIRS, "weight": 0.2},
        "relation": {**_RELATION, "weight": 2.0},
        "chunk_tokens": 5,
    },
}


@dataclass(frozen=True)
class Case:
    """One training step in one layout."""

    objective: str = "forward_kl"
    tensor: int = 1
    sequence: bool = False
    stages: str = "1"  # "2x2": two stages of two interleaved chunks
    data: int = 1
    microbatch: int = 1
    recompute: Recompute = "none"
    tied: bool = True

    @property
    def pipeline(self) -> int:
        return int(self.stages[0])

    @property
    def virtual(self) -> int | None:
        return int(self.stages[2]) if "x" in self.stages else None

    @property
    def world(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def possible(self) -> bool:
        microbatches = SAMPLES // (self.data * self.microbatch)
        return (
            self.world <= 8
            and not (self.sequence and self.tensor == 1)
            and not (self.virtual and microbatches % self.pipeline)
        )

    @property
    def cost(self) -> float:
        """About the time that it takes: ranks, and messages between tensor-parallel ranks."""
        messages = (self.tensor - 1) * SAMPLES // (self.data * self.microbatch)
        return 2 + self.world + messages / 4

    @property
    def parallel(self) -> Parallel:
        return Parallel(
            tensor=self.tensor,
            pipeline=self.pipeline,
            virtual_pipeline=self.virtual,
            sequence_parallel=self.sequence,
        )

    @property
    def student(self) -> Architecture:
        return STUDENT if self.tied else UNTIED

    @property
    def student_folder(self) -> str:
        return "tied" if self.tied else "untied"

    @property
    def reference(self) -> str:
        """The folder of the gradients to expect: they depend on nothing else."""
        return f"{self.objective}-{self.student_folder}"


OPTIONS: dict[str, list[Any]] = {
    "objective": list(OBJECTIVES),
    "tensor": [1, 2, 4],
    "sequence": [False, True],
    "stages": ["1", "2", "4", "2x2"],
    "data": [1, 2, 4],
    "microbatch": [1, 2, 4],
    "recompute": ["none", "selective", "full"],
    "tied": [True, False],
}


def objective(name: str) -> Objective:
    return Objective.model_validate(OBJECTIVES[name])


def covering() -> list[Case]:
    """Cases in which every possible pair of two options' values occurs; greedy, always the same."""
    every = [
        case
        for values in itertools.product(*OPTIONS.values())
        if (case := Case(**dict(zip(OPTIONS, values, strict=True)))).possible
    ]
    numbers: dict[Any, int] = {}
    bits = {
        case: sum(1 << numbers.setdefault(pair, len(numbers)) for pair in _pairs(case))
        for case in every
    }
    missing = (1 << len(numbers)) - 1
    chosen: list[Case] = []
    while missing:
        best = max(every, key=lambda case: (bits[case] & missing).bit_count() / case.cost)
        chosen.append(best)
        missing &= ~bits[best]
    return chosen


def _pairs(case: Case) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
    values = [(name, getattr(case, name)) for name in OPTIONS]
    return itertools.combinations(values, 2)


def samples() -> list[dict[str, Any]]:
    """The global batch: one to three segments a sample, some short, some tokens without loss."""
    rng = np.random.default_rng(3)
    return [_sample(rng) for _ in range(SAMPLES)]


def _sample(rng: np.random.Generator) -> dict[str, Any]:
    lengths = rng.integers(3, 6, size=int(rng.integers(1, 4)))
    tokens = rng.integers(0, VOCAB, size=int(lengths.sum()))
    found: dict[str, Any] = {
        "tokens": torch.zeros(LENGTH, dtype=torch.int64),
        "labels": torch.zeros(LENGTH, dtype=torch.int64),
        "loss_mask": torch.zeros(LENGTH, dtype=torch.bool),
        "position_ids": torch.zeros(LENGTH, dtype=torch.int64),
        "segment_ids": torch.full((LENGTH,), -1, dtype=torch.int64),
        "sample_hash": hashlib.md5(tokens.tobytes() + lengths.tobytes()).hexdigest(),
    }
    start = 0
    for number, length in enumerate(lengths.tolist()):
        here = slice(start, start + length)
        part = torch.from_numpy(tokens[here])
        found["tokens"][here] = part
        found["labels"][here] = part.roll(-1)
        # The first segment keeps a token with loss; another may have none.
        found["loss_mask"][here] = torch.from_numpy(rng.random(length) < 0.6 * (number < 2))
        found["loss_mask"][start] = number == 0
        found["loss_mask"][start + length - 1] = False
        found["position_ids"][here] = torch.arange(length)
        found["segment_ids"][here] = number
        start += length
    return found


def stacked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples as one microbatch."""
    names = [name for name, value in rows[0].items() if isinstance(value, Tensor)]
    batch: dict[str, Any] = {name: torch.stack([row[name] for row in rows]) for name in names}
    return batch | {"sample_hashes": [row["sample_hash"] for row in rows]}
