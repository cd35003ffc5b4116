"""A model to evaluate: a Hugging Face folder, checked before anything is started."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path

from ekd_nemo.errors import CheckpointError

CONFIG = "config.json"
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TOKENIZER_FILES = (
    *_TOKENIZERS,
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class ModelFolder:
    """A complete folder and what its content hashes to.

    `weights_sha256`: over config.json and the safetensors files. `tokenizer_sha256`: over the tokenizer's files.
    `name`: what the user named, where that is not the folder: a hub id or a checkpoint.
    """

    path: Path
    weights_sha256: str
    tokenizer_sha256: str
    name: str | None = None

    @property
    def label(self) -> str:
        """A short name that tells models apart: the folder's name and eight digits of the weights' hash."""
        own = self.path.resolve().name if self.name is None else Path(self.name).name
        return f"{own}-{self.weights_sha256[:8]}"

    @property
    def shown(self) -> str:
        """How records name it."""
        return self.name or str(self.path)


def open_model(path: Path, name: str | None = None) -> ModelFolder:
    """Check a Hugging Face folder and hash what decides its scores.

    Raises:
        CheckpointError: if the folder, its weights or its tokenizer are absent or incomplete.
    """
    weights = _weights(path)
    tokenizer = [path / name for name in _TOKENIZER_FILES if (path / name).is_file()]
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise CheckpointError(
            f"{path}: no tokenizer; expected one of {', '.join(_TOKENIZERS)} beside {CONFIG}"
        )
    return ModelFolder(path, hash_files([path / CONFIG, *weights]), hash_files(tokenizer), name)


def _weights(path: Path) -> list[Path]:
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; expected a Hugging Face model folder")
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path}: no {CONFIG}; expected a Hugging Face model folder")
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise CheckpointError(f"{path}: no *.safetensors; weights in other formats are not loaded")
    missing = _indexed(path) - {file.name for file in found}
    if missing:
        raise CheckpointError(f"{path}: {_INDEX} names {min(missing)}, which is not there")
    return found


def _indexed(path: Path) -> set[str]:
    """The files that the index of a sharded checkpoint names; none without an index."""
    index = path / _INDEX
    if not index.is_file():
        return set()
    try:
        return set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors files ({error!r})") from error


def hash_files(files: Iterable[Path]) -> str:
    """SHA-256 over names and contents; the folder does not count."""
    digest = sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
