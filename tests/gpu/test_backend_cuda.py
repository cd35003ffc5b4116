"""With CUDA the CPU back end must leave everything as it is."""

import pytest
import torch

from ekd_nemo.backend import cpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_nothing_is_patched() -> None:
    before = torch.cuda.current_device
    assert cpu.install(nemo=False) == ()
    assert torch.cuda.current_device is before
    assert cpu.transformer_overrides() == {}
