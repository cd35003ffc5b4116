"""Tensors under Hugging Face names out of a Megatron distributed checkpoint."""

from functools import lru_cache
from pathlib import Path

from torch import Tensor

from ekd_nemo.config.architecture import Architecture, read_architecture
from ekd_nemo.errors import CheckpointError
from ekd_nemo.models.convert_checkpoint import CheckpointReader, is_checkpoint
from ekd_nemo.models.weights.folder import FolderSource, resolve_folder
from ekd_nemo.models.weights.parts import hf_layer_prefix, layer_parts, top_parts
from ekd_nemo.models.weights.source import TensorSource


class CheckpointSource:
    """A distributed checkpoint of any layout as a `TensorSource`.

    A Megatron parameter is read whole and cut; the last few stay in memory, since query, key and
    value, or gate and up, come from one.
    """

    def __init__(self, folder: Path | str) -> None:
        """Read the table of contents.

        Args:
            folder: a NeMo checkpoint that says which decoder it is (`context/hf/config.json`).

        Raises:
            CheckpointError: it does not, or is not a distributed checkpoint of that decoder.
        """
        self.architecture: Architecture = read_architecture(folder)
        self._reader = CheckpointReader(folder)
        if self._reader.num_layers != self.architecture.num_layers:
            raise CheckpointError(
                f"{folder}: holds {self._reader.num_layers} layers, its config.json says "
                f"{self.architecture.num_layers}"
            )
        self._where = self._table()
        self._read = lru_cache(maxsize=2)(self._read_split)

    def get(self, name: str) -> Tensor:
        """The whole tensor."""
        if name not in self._where:
            raise CheckpointError(f"{self._reader.folder}: holds no tensor {name}")
        return self._read(*self._where[name])[name]

    def get_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, read whole."""
        return self.get(name)[start:stop]

    def get_columns(self, name: str, start: int, stop: int) -> Tensor:
        """Columns of a matrix, read whole."""
        return self.get(name)[:, start:stop]

    def _table(self) -> dict[str, tuple[str, int | None]]:
        """Megatron's parameter and layer of every Hugging Face tensor."""
        arch = self.architecture
        table: dict[str, tuple[str, int | None]] = {}
        for name, part in top_parts(arch).items():
            table |= dict.fromkeys(part.names(arch, ""), (name, None))
        for layer in range(arch.num_layers):
            for name, part in layer_parts(arch).items():
                table |= dict.fromkeys(part.names(arch, hf_layer_prefix(layer)), (name, layer))
        return table

    def _read_split(self, name: str, layer: int | None) -> dict[str, Tensor]:
        parts = top_parts if layer is None else layer_parts
        part = parts(self.architecture)[name]
        full = self._reader.read(name, layer)
        return part.split(full, self.architecture, hf_layer_prefix(layer))


def open_source(name: Path | str) -> TensorSource:
    """The tensors of a Hugging Face folder, a hub id, or a Megatron distributed checkpoint.

    Raises:
        CheckpointError: none of them.
    """
    folder = resolve_folder(str(name))
    if is_checkpoint(folder):
        return CheckpointSource(folder)
    return FolderSource(folder)
