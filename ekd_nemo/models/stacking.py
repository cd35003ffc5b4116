"""Packed samples as one microbatch; needs no NeMo, so that a teacher's ranks read as the student's."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ekd_nemo.parallel.batch import TENSORS


def stack(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples of `data.packed` as one microbatch: tensors [B, S], and the samples' hashes."""
    tensors: dict[str, Tensor] = {
        name: torch.stack([row[name] for row in rows]) for name in TENSORS
    }
    return tensors | {"sample_hashes": [row["sample_hash"] for row in rows]}
