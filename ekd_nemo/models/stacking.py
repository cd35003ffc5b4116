"""Packed samples as one microbatch; needs no NeMo, so that a teacher's ranks read as the student's."""

from typing import Any

import torch
from torch import Tensor

from ekd_nemo.data.packed import PackedDataset
from ekd_nemo.parallel.batch import TENSORS


def stack(samples: PackedDataset, indices: list[int]) -> dict[str, Any]:
    """The samples of `indices` as one microbatch: tensors [B, S], and the samples' hashes."""
    rows = [samples[index] for index in indices]
    tensors: dict[str, Tensor] = {
        name: torch.stack([row[name] for row in rows]) for name in TENSORS
    }
    return tensors | {"sample_hashes": [row["sample_hash"] for row in rows]}
