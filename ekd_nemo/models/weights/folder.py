"""Tensors of a Hugging Face folder, read from its safetensors files without loading them whole."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from requests.exceptions import RequestException
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ekd_nemo.config.architecture import HUB_ID, read_architecture
from ekd_nemo.errors import CheckpointError
from ekd_nemo.models.weights.source import HEAD, tensor_shapes

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Tensors that old checkpoints carry and that follow from the config.
IGNORED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer*", "merges.txt", "README.md"]


class FolderSource:
    """A folder with config.json and one safetensors file, or several and their index.

    Files are memory-mapped; tensors come in the dtype that they are stored in.
    """

    def __init__(self, folder: Path | str) -> None:
        """Open the files and check every tensor's name and shape, reading no values.

        Args:
            folder: a Hugging Face folder, or a hub id if there is no such folder.

        Raises:
            CheckpointError: something is missing, of another shape, or not covered.
        """
        self.folder = resolve_folder(folder)
        self.architecture = read_architecture(self.folder)
        self._files = {file: _open(file) for file in _weight_files(self.folder)}
        self._where: dict[str, Path] = {}
        for file, opened in self._files.items():
            self._where |= dict.fromkeys(opened.keys(), file)
        self._check()

    def get(self, name: str) -> Tensor:
        """The whole tensor."""
        return self._slice(name)[:]

    def get_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, and no others, from the file."""
        return self._slice(name)[start:stop]

    def get_columns(self, name: str, start: int, stop: int) -> Tensor:
        """Columns of a matrix."""
        return self._slice(name)[:, start:stop]

    def _slice(self, name: str) -> Any:
        if name not in self._where:
            raise CheckpointError(f"{self.folder}: holds no tensor {name}")
        return self._files[self._where[name]].get_slice(name)

    def _check(self) -> None:
        expected = tensor_shapes(self.architecture)
        for name, shape in expected.items():
            found = tuple(self._slice(name).get_shape())
            if found != shape:
                raise CheckpointError(
                    f"{self._where[name]}: {name} is {list(found)}, config.json says {list(shape)}"
                )
        tied = {HEAD} if self.architecture.tied_embeddings else set[str]()
        for name in sorted(self._where.keys() - expected.keys() - tied):
            if not IGNORED.search(name):
                raise CheckpointError(
                    f"{self._where[name]}: {name} is no tensor of a "
                    f"{self.architecture.family} decoder as config.json has it"
                )


def resolve_folder(name: Path | str) -> Path:
    """The folder itself, or the hub's snapshot where there is no such folder.

    Args:
        name: a folder, or a hub id `owner/model`.

    Raises:
        CheckpointError: no such folder, and no such model on a hub that can be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(str(name)):
        raise CheckpointError(
            f"{name}: no such folder; a Hugging Face folder or hub id is accepted"
        )
    try:
        return Path(snapshot_download(str(name), allow_patterns=HUB_FILES))
    except (
        HFValidationError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RequestException,
        OSError,
    ) as error:
        raise CheckpointError(
            f"{name}: no such folder, and not to be had from the hub ({type(error).__name__})"
        ) from None


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        raise CheckpointError(f"{folder}: holds neither {SINGLE_FILE} nor {INDEX_FILE}")
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: not an index with a weight_map: {error!r}") from None
    files = [folder / str(name) for name in names]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise CheckpointError(f"{index}: names {file.name}, which is not in the folder")
    return files


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a safetensors file: {error}") from None
