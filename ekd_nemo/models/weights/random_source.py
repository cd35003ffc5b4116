"""Random tensors that depend on the seed and the tensor's name, and on no parallel layout."""

import hashlib

import torch
from torch import Tensor

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.errors import CheckpointError
from ekd_nemo.models.weights.source import tensor_shapes


class RandomSource:
    """A decoder at random, as transformers starts one.

    Matrices are normal with standard deviation `initializer_range`, norms are 1, biases 0.
    Every tensor is drawn whole from its own generator, so any TP or PP reads the same values;
    a rank that needs some rows pays for drawing the whole matrix.
    """

    def __init__(self, architecture: Architecture, seed: int) -> None:
        """Take the decoder's shapes and a seed."""
        self.architecture = architecture
        self._seed = seed
        self._shapes = tensor_shapes(architecture)

    def get(self, name: str) -> Tensor:
        """The whole tensor, fp32."""
        shape = self._shapes.get(name)
        if shape is None:
            raise CheckpointError(f"{name}: no tensor of this decoder")
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        if name.endswith(".bias"):
            return torch.zeros(shape)
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        return torch.randn(shape, generator=generator) * self.architecture.initializer_range

    def get_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the tensor."""
        return self.get(name)[start:stop]

    def get_columns(self, name: str, start: int, stop: int) -> Tensor:
        """Columns of the matrix."""
        return self.get(name)[:, start:stop]
