"""Payloads of hidden states (fp32, bf16 or 8 bits with scales) and of pooled embeddings (fp32)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ekd_nemo.errors import DataError
from ekd_nemo.sources.cache_manifest import CacheIdentity, Storage
from ekd_nemo.teacher.cache.pieces import from_planes, part_of, planes, squeeze

# Values that share one scale: an outlier costs its neighbours only.
GROUP = 64
LARGEST = 127


def encode_dense(parts: Sequence[Tensor], identity: CacheIdentity) -> bytes:
    """One sample's payload: each part [n, H] on its own, so that any of them is read alone."""
    storage = identity.storage or "fp32"
    return squeeze([_stored(part, storage) for part in parts], identity.zstd_level)


def decode_dense(payload: memoryview, index: int, identity: CacheIdentity) -> Tensor:
    """Part `index` of a sample: [n, H] in float32, or bfloat16 where stored so.

    Raises:
        DataError: the payload is none of ours.
    """
    data = part_of(payload, index, identity.zstd_level)
    width, storage = identity.hidden_size, identity.storage or "fp32"
    groups = -(-width // GROUP)
    rows, rest = divmod(len(data), _row_bytes(width, storage))
    if rest:
        raise DataError(f"part {index} has {len(data)} bytes, no whole rows of width {width}")
    count = rows * width
    if storage == "bf16":
        words = torch.from_numpy(from_planes(data, "<i2", count))
        return words.view(torch.bfloat16).view(rows, width)
    if storage == "fp32":
        return torch.from_numpy(from_planes(data, "<f4", count)).view(rows, width)
    scales = torch.from_numpy(np.frombuffer(data, "<f4", rows * groups).copy())
    codes = torch.from_numpy(np.frombuffer(data, np.int8, count, 4 * rows * groups).copy())
    spread = scales.view(rows, groups).repeat_interleave(GROUP, dim=1)[:, :width]
    return codes.view(rows, width).float() * spread


def _row_bytes(width: int, storage: Storage) -> int:
    return {"fp32": 4 * width, "bf16": 2 * width, "int8": width + 4 * -(-width // GROUP)}[storage]


def _stored(values: Tensor, storage: Storage) -> bytes:
    values = values.detach().cpu()
    if storage == "fp32":
        return planes(values.float().numpy())
    if storage == "bf16":
        return planes(values.to(torch.bfloat16).contiguous().view(torch.int16).numpy())
    return _eight_bits(values.float())


def _eight_bits(values: Tensor) -> bytes:
    """Scales [n, H / 64] as float32, then codes [n, H]: value = code * scale."""
    rows, width = values.shape
    groups = -(-width // GROUP)
    padded = values.new_zeros(rows, groups * GROUP)
    padded[:, :width] = values
    grouped = padded.view(rows, groups, GROUP)
    scales = grouped.abs().amax(-1) / LARGEST
    codes = (grouped / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round()
    plain = codes.clamp(-LARGEST, LARGEST).to(torch.int8).view(rows, -1)[:, :width]
    return scales.numpy().astype("<f4").tobytes() + plain.contiguous().numpy().tobytes()
