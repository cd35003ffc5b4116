"""Weights of Llama and Qwen2 decoders, between Hugging Face folders and Megatron-Core models.

No process group and no NeMo is needed. `load_weights` fills the part of a model that one rank
holds from a `TensorSource`, reading only the rows or columns that this rank needs.
"""

from ekd_nemo.models.weights.folder import FolderSource, resolve_folder
from ekd_nemo.models.weights.load import load_weights
from ekd_nemo.models.weights.megatron import model_kwargs, transformer_kwargs
from ekd_nemo.models.weights.random_source import RandomSource
from ekd_nemo.models.weights.source import LayerSubsetSource, TensorSource, tensor_shapes

__all__ = [
    "FolderSource",
    "LayerSubsetSource",
    "RandomSource",
    "TensorSource",
    "load_weights",
    "model_kwargs",
    "resolve_folder",
    "tensor_shapes",
    "transformer_kwargs",
]
