"""Read tensors out of a Megatron distributed checkpoint without its layout, ranks or Megatron.

A checkpoint in the `torch_dist` format is a folder of `.distcp` files, a `.metadata` that says
which file holds which piece of which tensor, and `common.pt`. Tensors are read by torch with
`weights_only=True`. `.metadata` is a pickle: it is read by an unpickler that knows the classes that
the format is made of and refuses any other. `common.pt` is not read.

Resuming a run reads the same files through NeMo and Megatron, whose readers unpickle freely: resume
only from checkpoints of your own.
"""

import io
import math
import pickle
import re
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint import filesystem as dcp_filesystem
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint import planner as dcp_planner
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from ekd_nemo.config.recipe import Lora, Student
from ekd_nemo.config.resolve import read_resolved
from ekd_nemo.errors import CheckpointError
from ekd_nemo.models.weights.parts import DECODER_LAYERS, WORD_EMBEDDINGS

WEIGHTS = "weights"  # NeMo keeps the distributed checkpoint in this subfolder
METADATA = ".metadata"
# NeMo's wrappers put `module.` before Megatron's names; optimiser states have other prefixes.
MODEL_PREFIX = re.compile(rf"^((?:module\.)*){re.escape(WORD_EMBEDDINGS)}$")

_CLASSES: dict[tuple[str, str], Any] = {
    (module.__name__, name): getattr(module, name)
    for module, names in (
        (
            dcp_metadata,
            (
                "BytesStorageMetadata",
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            ),
        ),
        (dcp_filesystem, ("_StorageInfo",)),
        (dcp_planner, ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem")),
        (dcp_planner, ("WriteItemType",)),
        (torch, ("Size",)),
        (torch.serialization, ("_get_layout",)),
    )
    for name in names
} | {
    # Megatron's subclasses add fields that are not needed here: their bases take their place.
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"): dcp_metadata.Metadata,
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"): dcp_planner.SavePlan,
    ("pathlib", "PosixPath"): PurePosixPath,
    ("collections", "OrderedDict"): dict,
    ("builtins", "set"): set,
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known = _CLASSES.get((module_name, global_name))
        if known is not None:
            return known
        if module_name == "torch":
            value = getattr(torch, global_name, None)
            if isinstance(value, torch.dtype):
                return value
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not part of the format")


class _Region(DefaultLoadPlanner):
    """Reads into one given tensor."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: Any) -> Tensor:
        return self._target


class CheckpointReader:
    """The model's tensors in a distributed checkpoint, by Megatron's canonical names."""

    def __init__(self, folder: Path | str) -> None:
        """Read the checkpoint's table of contents.

        Args:
            folder: a checkpoint as NeMo writes it (with `weights` inside), or that subfolder.

        Raises:
            CheckpointError: not a distributed checkpoint, or no GPT model in it.
        """
        self.folder = find_weights(Path(folder))
        metadata = read_metadata(self.folder / METADATA)
        self._tensors: dict[str, TensorStorageMetadata] = {
            name: entry
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self._reader = FileSystemReader(self.folder)
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._prefix = self._find_prefix()

    @property
    def num_layers(self) -> int:
        """Decoder layers in the checkpoint."""
        stacked = f"{self._prefix}{DECODER_LAYERS}mlp.linear_fc2.weight"
        if stacked in self._tensors:
            return int(self._tensors[stacked].size[0])
        single = re.compile(rf"{re.escape(self._prefix + DECODER_LAYERS)}(\d+)\.")
        found = (single.match(name) for name in self._tensors)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    def read(self, name: str, layer: int | None = None) -> Tensor:
        """One parameter of all ranks together, in the dtype that it was saved in.

        A matrix with a low-rank adapter is given with the adapter merged: `W + alpha / rank * B A`,
        summed in fp32 and rounded once.

        Args:
            name: canonical name; within the layer if `layer` is given.
            layer: number of the decoder layer, from 0. Layers lie stacked in one tensor, or under
                names of their own; only the asked one is read.

        Raises:
            CheckpointError: there is no such parameter, or pieces of it are missing.
        """
        found = self.read_bare(name, layer)
        adapter = None if layer is None else self.read_adapter(name, layer)
        if adapter is None:
            return found
        down, up = (each.float() for each in adapter)
        return (found.float() + self.adapted.alpha / len(down) * (up @ down)).to(found.dtype)

    def read_bare(self, name: str, layer: int | None = None) -> Tensor:
        """As `read`, without the adapter: of an adapted matrix what the run began with."""
        if layer is None:
            return self._read_region(self._prefix + name, [])
        single = f"{self._prefix}{DECODER_LAYERS}{layer}.{name}"
        if single in self._tensors:
            return self._read_region(single, [])
        return self._read_region(f"{self._prefix}{DECODER_LAYERS}{name}", [layer])[0]

    def read_adapter(self, name: str, layer: int) -> tuple[Tensor, Tensor] | None:
        """The adapter of a layer's parameter: A [rank, inputs] and B [outputs, rank]; None without."""
        matrix = name.removesuffix(".weight")
        names = [f"{matrix}.adapter.{side}.weight" for side in ("linear_in", "linear_out")]
        layers = f"{self._prefix}{DECODER_LAYERS}"
        if matrix == name or not {f"{layers}{names[0]}", f"{layers}{layer}.{names[0]}"} & set(
            self._tensors
        ):
            return None
        return self.read_bare(names[0], layer), self.read_bare(names[1], layer)

    @property
    def adapted(self) -> Lora:
        """What the recipe of the run says of its adapters: the tensors do not tell alpha.

        Raises:
            CheckpointError: the checkpoint does not lie in the run directory that it was saved to.
        """
        assert self.student.lora is not None
        return self.student.lora

    @cached_property
    def student(self) -> Student:
        """The student of the run that saved adapters here; raises as `adapted` does."""
        recipe = self.folder.absolute().parent.parent.parent / "recipe.yaml"
        student = read_resolved(recipe).student if recipe.is_file() else None
        if student is None or student.lora is None:
            raise CheckpointError(
                f"{self.folder}: holds adapters, and {recipe} does not say their alpha; accepted: a "
                "checkpoint inside its run directory"
            )
        return student

    def _find_prefix(self) -> str:
        found = [match[1] for match in map(MODEL_PREFIX.match, self._tensors) if match]
        if len(found) != 1:
            raise CheckpointError(f"{self.folder}: holds {len(found)} GPT models, accepted is one")
        return found[0]

    def _read_region(self, key: str, first: list[int]) -> Tensor:
        """The tensor from `first` on its leading axes (one index each), whole on the others."""
        entry = self._tensors.get(key)
        if entry is None:
            raise CheckpointError(f"{self.folder}: holds no tensor {key}")
        rest = list(entry.size)[len(first) :]
        sizes = torch.Size([1] * len(first) + rest)
        region = ChunkStorageMetadata(torch.Size(first + [0] * len(rest)), sizes)
        items = create_read_items_for_chunk_list(key, entry, [region])
        if sum(math.prod(item.lengths) for item in items) != math.prod(sizes):
            raise CheckpointError(f"{self.folder}: pieces of {key} are missing")
        target = torch.empty(sizes, dtype=entry.properties.dtype)
        try:
            self._reader.read_data(LoadPlan(items), _Region(target))
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self.folder}: {key} cannot be read: {error}") from error
        return target


def find_weights(folder: Path) -> Path:
    """The distributed checkpoint itself, given its folder or NeMo's folder around it.

    Raises:
        CheckpointError: neither holds one.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; a Megatron distributed checkpoint is accepted"
        )
    for candidate in _candidates(folder):
        if (candidate / METADATA).is_file():
            return candidate
    raise CheckpointError(
        f"{folder}: not a Megatron distributed checkpoint (no {METADATA} in it or in {WEIGHTS}/)"
    )


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder, or `weights` in it, looks like a distributed checkpoint."""
    return any((candidate / METADATA).is_file() for candidate in _candidates(folder))


def _candidates(folder: Path) -> tuple[Path, Path]:
    return folder / WEIGHTS, folder


def read_metadata(file: Path) -> dcp_metadata.Metadata:
    """The table of contents, unpickled with the format's own classes only.

    Raises:
        CheckpointError: the file is torn, or names a class that is not part of the format.
    """
    try:
        metadata = _MetadataUnpickler(io.BytesIO(file.read_bytes())).load()
    except Exception as error:  # a torn pickle raises almost anything
        raise CheckpointError(f"{file}: not a checkpoint's table of contents: {error}") from error
    if not isinstance(metadata, dcp_metadata.Metadata) or metadata.storage_data is None:
        raise CheckpointError(f"{file}: not a checkpoint's table of contents")
    return metadata
