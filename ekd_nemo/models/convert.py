"""Between Hugging Face folders and Megatron distributed checkpoints, on one CPU process.

Import writes the layout of NeMo 2 (`weights` and `context`) with Megatron's own writer. Export
reads a checkpoint of any tensor, pipeline or data parallelism, one layer's tensor at a time.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ekd_nemo.config.architecture import (
    CHECKPOINT_ASSETS,
    CONFIG_FILE,
    Architecture,
    read_architecture,
)
from ekd_nemo.errors import CheckpointError
from ekd_nemo.models.convert_adapter import write_adapter
from ekd_nemo.models.convert_checkpoint import CheckpointReader
from ekd_nemo.models.convert_folder import (
    copy_tokenizer,
    write_assets,
    write_config,
    write_weights,
)
from ekd_nemo.models.weights.folder import FolderSource, resolve_folder
from ekd_nemo.models.weights.parts import hf_layer_prefix, layer_parts, top_parts

_log = logging.getLogger("ekd")


def export_checkpoint(
    checkpoint_dir: Path | str,
    out_dir: Path | str,
    *,
    architecture: Architecture | None = None,
    like: Path | str | None = None,
    tokenizer_from: Path | str | None = None,
    dtype: str | None = None,
    adapter: bool = False,
) -> Path:
    """Write the model in a distributed checkpoint as a Hugging Face folder.

    Low-rank adapters are merged into their matrices, unless `adapter` asks for them alone.
    Optimiser states and whatever else the checkpoint holds are left out.

    Args:
        checkpoint_dir: as NeMo writes it, or its `weights` subfolder.
        out_dir: folder to make; must not exist.
        architecture: the decoder; None takes it from `like`, with the depth of the checkpoint.
        like: Hugging Face folder or hub id; None takes `tokenizer_from`, and without that what the
            checkpoint says itself (`context/hf`).
        tokenizer_from: Hugging Face folder or hub id whose tokenizer, token ids and generation
            config are copied; None takes those of `like`.
        dtype: float32, bfloat16 or float16; None keeps the dtype of the checkpoint.
        adapter: write the adapters alone, as Hugging Face's `peft` reads them.

    Returns:
        `out_dir`.

    Raises:
        CheckpointError: not a checkpoint of this decoder, or `out_dir` exists. Nothing is left
            half made.
    """
    out = _absent(Path(out_dir))
    reader = CheckpointReader(checkpoint_dir)
    config = _config_folder(reader, like or tokenizer_from)
    tokenizer = config if tokenizer_from is None else _described(resolve_folder(tokenizer_from))
    arch = architecture or read_architecture(config).with_layers(reader.num_layers)
    if reader.num_layers != arch.num_layers:
        raise CheckpointError(
            f"{reader.folder}: holds {reader.num_layers} layers, the decoder has {arch.num_layers}"
        )
    with _sibling(out) as folder:
        copy_tokenizer(tokenizer, folder)
        if adapter:
            stored = write_adapter(folder, reader, arch, dtype)
        else:
            stored = write_weights(folder, hf_tensors(reader, arch), arch, dtype)
            write_config(folder, arch, tokenizer, stored)
    _log.info("%s: exported from %s in %s", out, reader.folder, stored)
    return out


def hf_tensors(reader: CheckpointReader, arch: Architecture) -> Iterator[tuple[str, Tensor]]:
    """Every Hugging Face tensor of a checkpoint's model, layer by layer."""
    for name, part in top_parts(arch).items():
        yield from part.split(reader.read(name), arch, "").items()
    for layer in range(arch.num_layers):
        for name, part in layer_parts(arch).items():
            yield from part.split(reader.read(name, layer), arch, hf_layer_prefix(layer)).items()


def import_checkpoint(source_dir: Path | str, out_dir: Path | str) -> Path:
    """Write a Hugging Face model as a NeMo 2 checkpoint, in its own dtype.

    The whole model is held in memory once.

    Args:
        source_dir: Hugging Face folder or hub id.
        out_dir: folder to make; must not exist.

    Returns:
        `out_dir`, with `weights` (distributed checkpoint), `context` (NeMo's model and trainer
        configuration and tokenizer) and `context/hf` (for a later export).

    Raises:
        CheckpointError: the source is not a covered model, or `out_dir` exists.
    """
    from ekd_nemo.models import convert_nemo

    out = _absent(Path(out_dir))
    source = FolderSource(source_dir)
    with _sibling(out) as folder:
        convert_nemo.write_checkpoint(folder, source)
        write_assets(folder / CHECKPOINT_ASSETS, source.architecture, source.folder)
    _log.info("%s: imported from %s", out, source.folder)
    return out


def _config_folder(reader: CheckpointReader, given: Path | str | None) -> Path:
    if given is not None:
        return _described(resolve_folder(given))
    folder = reader.folder.parent / CHECKPOINT_ASSETS
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{reader.folder.parent}: does not say which decoder it is (no "
            f"{CHECKPOINT_ASSETS}/{CONFIG_FILE}); name a Hugging Face folder like it (--like FOLDER)"
        )
    return folder


def _described(folder: Path) -> Path:
    """The folder itself, or for an imported checkpoint its config and tokenizer."""
    kept = folder / CHECKPOINT_ASSETS
    return kept if kept.is_dir() else folder


def _absent(out: Path) -> Path:
    if out.exists():
        raise CheckpointError(f"{out}: exists, nothing is overwritten; remove it or choose another")
    return out


@contextmanager
def _sibling(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out`, or is removed on any error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
