"""Projectors on a model part, without Megatron's own layers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ekd_nemo.parallel import taps
from ekd_nemo.parallel.taps import Pair, add_projectors


class Part(nn.Module):
    """Two layers of a model, the second and third."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=4, params_dtype=torch.bfloat16)
        self.decoder = nn.Module()
        layers: list[Any] = [nn.Identity(), nn.Identity()]
        for number, layer in enumerate(layers, start=2):
            layer.layer_number = number
        self.decoder.layers = nn.ModuleList(layers)


def test_projectors_are_made_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing moves a model there later: without the distributed optimiser they stayed on the CPU."""
    monkeypatch.setattr(taps, "compute_device", lambda: torch.device("meta"))
    part: Any = Part()
    add_projectors(part, [Pair(5, 1), Pair(9, 3)], 6, 0, sequence_parallel=True)
    assert list(part.projectors) == ["5_1"]
    weight = part.projectors["5_1"].weight
    assert (weight.device.type, weight.dtype, weight.shape) == ("meta", torch.bfloat16, (6, 4))
    assert weight.sequence_parallel
