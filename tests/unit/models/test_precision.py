"""Precision settings by their arguments; FP8 itself needs a GPU (tests/gpu/test_fp8.py)."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from ekd_nemo.config.known_models import KNOWN_MODELS
from ekd_nemo.config.resolve import PACKAGED_RECIPES, resolve_recipe
from ekd_nemo.errors import ConfigError
from ekd_nemo.models import precision as module
from ekd_nemo.models.precision import (
    check_fp8,
    check_teacher_fp8,
    plugin_settings,
    transformer_settings,
)

STUDENT = KNOWN_MODELS["meta-llama/Llama-3.1-8B-Instruct"]
TEACHER = KNOWN_MODELS["meta-llama/Llama-3.1-70B-Instruct"]


def recipe(*overrides: str) -> Any:
    return resolve_recipe("response_70b_to_8b", overrides, [PACKAGED_RECIPES]).recipe


def test_only_fp8_touches_the_fp8_fields() -> None:
    assert plugin_settings("fp32") == {"precision": "32"}
    assert not [key for key in plugin_settings("bf16") if "fp8" in key]
    assert plugin_settings("fp8")["precision"] == "bf16-mixed"
    assert transformer_settings("bf16") == transformer_settings("fp32") == {}


def test_the_teachers_fields_are_megatrons_and_take_effect() -> None:
    settings = transformer_settings("fp8")
    assert set(settings) <= {field.name for field in fields(TransformerConfig)}
    config = TransformerConfig(num_layers=2, hidden_size=64, num_attention_heads=4, **settings)
    assert config.fp8 == "hybrid"
    assert (
        config.fp8_recipe == "tensorwise"
    )  # delayed scaling would reduce over the student's groups
    assert not config.fp8_param
    assert not config.fp8_dot_product_attention
    # Megatron then never tells Transformer Engine which microbatch is the first: no copies are kept.
    assert config.disable_parameter_transpose_cache


def test_fp8_is_refused_in_one_line_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_fp8(recipe(), STUDENT, TEACHER, 8192)
    with pytest.raises(ConfigError, match=r"student\.precision is fp8: there is no CUDA device"):
        check_fp8(recipe("student.precision=fp8"), STUDENT, TEACHER, 8192)
    with pytest.raises(ConfigError, match=r"teacher\.precision is fp8: there is no CUDA device"):
        check_fp8(recipe("teacher.precision=fp8"), STUDENT, TEACHER, 8192)


@pytest.mark.parametrize("variant", ["split", "cached"])
def test_a_teacher_elsewhere_asks_nothing_of_the_students_boards(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name = f"response_70b_to_8b+{variant}+fp8"
    found = resolve_recipe(name, ("student.precision=bf16",), [PACKAGED_RECIPES]).recipe
    assert found.teacher is not None
    assert found.teacher.precision == "fp8"
    check_fp8(found, STUDENT, TEACHER, 8192)
    with pytest.raises(ConfigError, match=r"teacher\.precision is fp8: there is no CUDA device"):
        check_teacher_fp8(found, TEACHER, 8192)


@pytest.mark.parametrize(
    ("engine", "capability", "message"),
    [
        (None, (9, 0), "Transformer Engine is not installed"),
        ("there", (8, 0), r"A100 has compute capability 8\.0, FP8 begins at 8\.9; accepted: bf16"),
        ("there", (8, 9), ""),
        ("there", (9, 0), ""),
    ],
)
def test_boards_and_engine_decide(
    monkeypatch: pytest.MonkeyPatch, engine: str | None, capability: tuple[int, int], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: engine)
    asked = recipe("student.precision=fp8")
    if not message:
        check_fp8(asked, STUDENT, TEACHER, 8192)
        return
    with pytest.raises(ConfigError, match=message):
        check_fp8(asked, STUDENT, TEACHER, 8192)


def test_the_plugin_takes_the_arguments() -> None:
    # NeMo takes a quarter of a minute to import: the source says what the plugin accepts.
    site = Path(inspect.getfile(TransformerConfig).split("megatron")[0])
    source = (site / "nemo/lightning/pytorch/plugins/mixed_precision.py").read_text()
    signature = source.split("class MegatronMixedPrecision")[1].split(") -> None:")[0]
    for name in plugin_settings("fp8"):
        assert f"        {name}: " in signature
