"""Small caches of random teachers, for the tests of the format and of the source."""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ekd_nemo.sources.cache_manifest import CacheIdentity
from ekd_nemo.teacher.cache.block import Row
from ekd_nemo.teacher.cache.encode import encode_sample
from ekd_nemo.teacher.cache.writer import CacheWriter

VOCAB, WIDTH = 700, 80


def identity(kind: str = "topk", **changes: Any) -> CacheIdentity:
    """The identity of a small cache."""
    settings: dict[str, Any] = {
        "topk": {"temperature": 1.0, "k": 8, "min_probability": 0.0, "probability_bits": 16},
        "sampled": {"temperature": 1.0, "samples": 20, "seed": 3, "probability_bits": 16},
        "hidden": {"final": True, "layers": (1, 3), "storage": "fp32"},
        "embeddings": {"pooling": "mean"},
    }[kind]
    base: dict[str, Any] = {
        "teacher": "t" * 32,
        "tokenizer": "k" * 64,
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "precision": "fp32",
        "kind": kind,
        "block_samples": 3,
    }
    return CacheIdentity.model_validate(base | settings | changes)


def sample_name(number: int) -> str:
    return blake2b(number.to_bytes(8, "little"), digest_size=16).hexdigest()


def tokens_of(number: int) -> int:
    return 5 + number % 4


def logits_of(number: int) -> Tensor:
    """[n, V] in float64: peaked and flat tokens."""
    generator = torch.Generator().manual_seed(number)
    plain = torch.randn(tokens_of(number), VOCAB, generator=generator, dtype=torch.float64)
    return plain * torch.linspace(0.5, 5, tokens_of(number), dtype=torch.float64)[:, None]


def dense_of(number: int, rows: int | None = None) -> list[Tensor]:
    """Three parts [n, H]: final and two layers."""
    generator = torch.Generator().manual_seed(1000 + number)
    return [torch.randn(rows or tokens_of(number), WIDTH, generator=generator) for _ in range(3)]


def row(number: int, who: CacheIdentity) -> Row:
    """What a builder would write of a sample."""
    logits = logits_of(number) if who.kind in ("topk", "sampled") else None
    dense = dense_of(number) if who.kind == "hidden" else dense_of(number, rows=2)[:1]
    return encode_sample(sample_name(number), tokens_of(number), who, logits=logits, dense=dense)


def write_cache(folder: Path, who: CacheIdentity, count: int = 8) -> list[str]:
    """A finished cache of `count` samples; returns their hashes."""
    samples = [sample_name(number) for number in range(count)]
    writer = CacheWriter(folder, who, samples)
    writer.begin()
    for block in writer.missing():
        writer.write(block, [row(samples.index(name), who) for name in writer.block(block)])
    writer.finish()
    return samples
