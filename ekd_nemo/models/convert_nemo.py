"""A Hugging Face model as a NeMo 2 checkpoint, written by NeMo and Megatron themselves."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from ekd_nemo.backend import cpu
from ekd_nemo.config.architecture import CONFIG_FILE, VOCAB_MULTIPLE, Architecture
from ekd_nemo.models.convert_folder import TOKENIZER_FILES
from ekd_nemo.models.weights.folder import FolderSource
from ekd_nemo.models.weights.load import load_weights
from ekd_nemo.models.weights.megatron import transformer_kwargs
from ekd_nemo.models.weights.source import EMBEDDING


def write_checkpoint(folder: Path, source: FolderSource) -> None:
    """Write `weights` (distributed checkpoint) and `context` (configuration and tokenizer).

    The model is built in this process, on the CPU, in the source's dtype. Written on a machine
    without CUDA, the context asks for unfused layers, which run everywhere.

    Args:
        folder: exists.
        source: its tensors, architecture and tokenizer.
    """
    cpu.install()
    from nemo.lightning import io, teardown

    # NeMo copies the whole folder that a tokenizer comes from: give it one without weights.
    with tempfile.TemporaryDirectory() as scratch:
        model = _model(source, _tokenizer(source.folder, Path(scratch) / "nemo_tokenizer"))
        connector = io.ModelConnector(source.folder)
        trainer = connector.nemo_setup(model)
        load_weights([model], source)
        connector.nemo_save(folder, trainer)
        teardown(trainer, model)


def _tokenizer(folder: Path, bare: Path) -> Any:
    from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import (
        AutoTokenizer,
    )

    bare.mkdir()
    for name in (*TOKENIZER_FILES, CONFIG_FILE):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, bare / name)
    return AutoTokenizer(str(bare))


def _model(source: FolderSource, tokenizer: Any) -> Any:
    from nemo.collections import llm

    arch = source.architecture
    dtype = source.get_rows(EMBEDDING, 0, 1).dtype
    kwargs = transformer_kwargs(arch) | {
        "seq_length": arch.max_positions,
        "rotary_base": arch.rope_theta,
        "share_embeddings_and_output_weights": arch.tied_embeddings,
        "make_vocab_size_divisible_by": _vocab_divisor(arch.vocab_size),
        "vocab_size": arch.vocab_size,
        "fp16": dtype == torch.float16,
        "bf16": dtype == torch.bfloat16,
        "params_dtype": dtype,
        **cpu.transformer_overrides(),
    }
    model = llm.Qwen2Model if arch.family == "qwen2" else llm.LlamaModel
    return model(_config(arch, llm, kwargs), tokenizer=tokenizer)


def _config(arch: Architecture, llm: Any, kwargs: dict[str, Any]) -> Any:
    if arch.family == "qwen2":
        return llm.Qwen2Config(**kwargs)
    if arch.rope_scaling is None:
        return llm.LlamaConfig(**kwargs)
    return llm.Llama31Config(scale_factor=arch.rope_scaling.factor, **kwargs)


def _vocab_divisor(vocab_size: int) -> int:
    """The largest power of two up to Megatron's usual 128 that divides the vocabulary."""
    divisor = VOCAB_MULTIPLE
    while vocab_size % divisor:
        divisor //= 2
    return divisor
