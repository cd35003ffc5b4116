"""The table of known decoders against their published parameter counts."""

import pytest

from ekd_nemo.config.known_models import KNOWN_MODELS

# Total parameters as the hub's safetensors index of each model states them.
PUBLISHED = {
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-72B-Instruct": 72_706_203_648,
}


@pytest.mark.parametrize("name", sorted(KNOWN_MODELS))
def test_parameters_as_published(name: str) -> None:
    assert KNOWN_MODELS[name].num_parameters() == PUBLISHED[name]
