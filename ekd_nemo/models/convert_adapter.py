"""A checkpoint's low-rank adapters in the layout that Hugging Face's `peft` reads.

`adapter_config.json` and `adapter_model.safetensors`, with A and B under the names of the Hugging
Face matrices: what Megatron holds as one matrix shares its A.
Source: peft 0.21, `utils/save_and_load.py`.
"""

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.errors import CheckpointError
from ekd_nemo.models.convert_checkpoint import CheckpointReader, is_checkpoint
from ekd_nemo.models.convert_folder import DTYPES, write_json
from ekd_nemo.models.weights.parts import hf_layer_prefix, layer_parts

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


def write_adapter(
    folder: Path, reader: CheckpointReader, arch: Architecture, dtype: str | None
) -> str:
    """Write adapters and their configuration.

    Args:
        folder: exists.
        reader: of the checkpoint.
        arch: the decoder.
        dtype: one of `DTYPES`, or None to keep what the tensors are in.

    Returns:
        The name of the dtype that they are stored in.

    Raises:
        CheckpointError: the checkpoint holds none, or what they are put on is no folder of its own.
    """
    tensors = dict(adapter_tensors(reader, arch))
    if not tensors:
        raise CheckpointError(
            f"{reader.folder}: holds no adapters; accepted: a checkpoint of a run with student.lora, "
            "or the whole model without --adapter"
        )
    base = _base(reader)
    if dtype is not None:
        tensors = {name: each.to(DTYPES[dtype]) for name, each in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors writes files that only their owner may read
    lora = reader.adapted
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(folder / CONFIG, config)
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


def adapter_tensors(reader: CheckpointReader, arch: Architecture) -> Iterator[tuple[str, Tensor]]:
    """A and B of every adapted Hugging Face matrix, under peft's names, layer by layer."""
    for layer in range(arch.num_layers):
        for name, part in layer_parts(arch).items():
            found = reader.read_adapter(name, layer)
            if found is None:
                continue
            down, up = found
            for matrix, rows in part.split(up, arch, hf_layer_prefix(layer)).items():
                stem = f"{PREFIX}{matrix.removesuffix('.weight')}"
                yield f"{stem}.lora_A.weight", down.clone()  # a file holds no tensor twice
                yield f"{stem}.lora_B.weight", rows.contiguous()


def _base(reader: CheckpointReader) -> str:
    """The model that the adapters are put on: where the student began."""
    init = reader.student.init
    if init.path is None or init.source != "checkpoint" or is_checkpoint(Path(init.path)):
        raise CheckpointError(
            f"{reader.folder}: the student began from source {init.source}"
            f"{'' if init.path is None else f' at {init.path}'}, which is no Hugging Face model that "
            "adapters could be put on; accepted: the whole model, without --adapter"
        )
    folder = Path(init.path)
    return str(folder.absolute()) if folder.is_dir() else init.path
