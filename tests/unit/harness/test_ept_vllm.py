"""vLLM is not installed where tests run: what it would be called with, and that its absence is one line."""

from importlib.util import find_spec

import pytest

from ekd_nemo.errors import UserError
from ekd_nemo.evals.ept_request import EptSettings

pytest.importorskip("torch")


def test_arguments_of_the_engine() -> None:
    from ekd_nemo.harness.ept_vllm import llm_arguments

    settings = EptSettings(engine="vllm", dtype="bfloat16", tensor=4, seed=7)
    assert llm_arguments("m", settings, 16, None) == {
        "model": "m",
        "dtype": "bfloat16",
        "seed": 7,
        "tensor_parallel_size": 4,
        "trust_remote_code": False,
        "max_num_seqs": 16,
        "max_model_len": None,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
    }


def test_fixed_lengths_ignore_the_end_and_natural_ones_do_not() -> None:
    from ekd_nemo.harness.ept_vllm import sampling_arguments

    fixed, natural = sampling_arguments(8, fixed=True), sampling_arguments(8, fixed=False)
    assert (fixed["min_tokens"], fixed["max_tokens"], fixed["ignore_eos"]) == (8, 8, True)
    assert (natural["min_tokens"], natural["max_tokens"], natural["ignore_eos"]) == (0, 8, False)
    assert fixed["temperature"] == natural["temperature"] == 0.0


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_other_engine_is_named() -> None:
    from ekd_nemo.harness.ept_vllm import VllmEngine

    with pytest.raises(UserError, match="not installed here; accepted: transformers"):
        VllmEngine("m", EptSettings(engine="vllm"), [], 1)
