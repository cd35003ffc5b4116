"""Write Hugging Face folders: weights in shards, and the small files beside them."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ekd_nemo.config.architecture import CONFIG_FILE, Architecture
from ekd_nemo.errors import CheckpointError
from ekd_nemo.models.weights.folder import INDEX_FILE, SINGLE_FILE
from ekd_nemo.models.weights.source import tensor_shapes

SHARD_BYTES = 5_000_000_000  # as transformers' save_pretrained
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
GENERATION_FILE = "generation_config.json"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class WeightsWriter:
    """Writes tensors as they come, a shard at a time; no more than one shard is in memory."""

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        """Write into `folder`, which exists."""
        self._folder = folder
        self._limit = shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[tuple[Path, list[str]]] = []
        self._total_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Take one tensor; a full shard is written out first."""
        if self._pending and self._pending_bytes + tensor.nbytes > self._limit:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += tensor.nbytes

    def close(self) -> None:
        """Write the last shard, give the shards their names, and write the index if needed."""
        self._flush()
        count = len(self._shards)
        if count == 1:
            self._shards[0][0].rename(self._folder / SINGLE_FILE)
            return
        weight_map: dict[str, str] = {}
        for number, (file, names) in enumerate(self._shards, start=1):
            name = f"model-{number:05d}-of-{count:05d}.safetensors"
            file.rename(self._folder / name)
            weight_map |= dict.fromkeys(names, name)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        write_json(self._folder / INDEX_FILE, index)

    def _flush(self) -> None:
        file = self._folder / f"shard-{len(self._shards)}.tmp"
        save_file(self._pending, file, metadata={"format": "pt"})
        file.chmod(0o644)  # safetensors writes files that only their owner may read
        self._shards.append((file, list(self._pending)))
        self._total_bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], arch: Architecture, dtype: str | None
) -> str:
    """Write a decoder's tensors, checking names and shapes.

    Args:
        folder: exists.
        tensors: each of the decoder's tensors once, in any order.
        arch: the decoder.
        dtype: one of `DTYPES`, or None to keep what the tensors are in.

    Returns:
        The dtype's name, for config.json: that of the embedding if they differ.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    missing = tensor_shapes(arch)
    writer = WeightsWriter(folder)
    stored = dtype
    for name, tensor in tensors:
        shape = missing.pop(name, None)
        if shape is None or tuple(tensor.shape) != shape:
            raise CheckpointError(f"{name} is {list(tensor.shape)}, the decoder has {shape}")
        stored = stored or str(tensor.dtype).removeprefix("torch.")
        writer.add(name, tensor if dtype is None else tensor.to(DTYPES[dtype]))
    if missing:
        raise CheckpointError(f"{len(missing)} tensors are missing, {next(iter(missing))} is one")
    writer.close()
    assert stored is not None
    return stored


def write_config(folder: Path, arch: Architecture, like: Path, dtype: str | None) -> None:
    """Write config.json of `arch`, with the token ids of the folder `like`."""
    config = arch.to_hf_config() | ({} if dtype is None else {"torch_dtype": dtype})
    source = like / CONFIG_FILE
    if source.is_file():
        ids: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
        config |= {key: ids[key] for key in TOKEN_IDS if ids.get(key) is not None}
    write_json(folder / CONFIG_FILE, config)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files and the generation config; those that are not there are skipped.

    Raises:
        CheckpointError: `source` has no tokenizer at all.
    """
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise CheckpointError(f"{source}: holds no tokenizer ({', '.join(TOKENIZER_FILES[:2])})")
    for name in (*found, GENERATION_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_assets(folder: Path, arch: Architecture, like: Path) -> None:
    """Make a folder of config, tokenizer and generation config: all of a model but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(like, folder)
    write_config(folder, arch, like, dtype=None)


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write indented JSON with a final newline."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
