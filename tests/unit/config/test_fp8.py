"""FP8's wishes for sizes, on the shipped models and on one that does not fit."""

from dataclasses import replace

import pytest

from ekd_nemo.config.fp8 import fp8_misfit
from ekd_nemo.config.known_models import KNOWN_MODELS


@pytest.mark.parametrize("name", sorted(KNOWN_MODELS))
def test_the_known_models_fit_wherever_they_can_be_cut(name: str) -> None:
    arch = KNOWN_MODELS[name]
    for tensor in (1, 2, 4, 8):
        if arch.num_kv_groups % tensor == 0:
            assert fp8_misfit(arch, tensor, 8192) == ""


def test_what_does_not_divide_is_named() -> None:
    arch = KNOWN_MODELS["Qwen/Qwen2.5-7B-Instruct"]
    assert "tokens of a microbatch is 8190" in fp8_misfit(arch, 1, 8190)
    narrow = replace(arch, ffn_size=18944 - 8)
    assert "with tensor 1 the feed-forward width is 18936" in fp8_misfit(narrow, 1, 8192)
