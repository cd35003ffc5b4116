"""Precision settings of both models: what NeMo's plugin and Megatron's configuration are given.

In FP8 the matrix products of the layers run in 8 bits inside Transformer Engine, with current (per
tensor) scaling: delayed scaling takes its maxima over Megatron's global groups, which are not the
teacher's where its layout is its own, and it keeps a history that the relation loss's second forward
pass would change. Kept in higher precision: weights and activations between the products (bf16),
attention, norms, the embedding, the head and the losses (their products in bf16, sums in fp32), the
projectors of feature distillation, gradients and the optimiser (fp32).
"""

import importlib.util
from typing import Any

import torch

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.fp8 import fp8_misfit
from ekd_nemo.config.recipe import Parallel, Precision, Recipe
from ekd_nemo.errors import ConfigError

# The type of weights and activations.
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,
}
# E4M3 forward and E5M2 for gradients; maxima of the current tensor.
FP8_FORMAT, FP8_RECIPE = "hybrid", "tensorwise"
# Ada (8.9) and Hopper (9.0) have FP8 products; Ampere has none.
FP8_CAPABILITY = (8, 9)


def plugin_settings(precision: Precision) -> dict[str, Any]:
    """Arguments of NeMo's `MegatronMixedPrecision` for the student."""
    if precision == "fp32":
        return {"precision": "32"}
    settings: dict[str, Any] = {"precision": "bf16-mixed", "grad_reduce_in_fp32": True}
    if precision == "fp8":
        settings |= {
            "fp8": FP8_FORMAT,
            "fp8_recipe": FP8_RECIPE,
            "fp8_param_gather": False,  # weights stay in bf16: the optimiser's master follows them
            "fp8_dot_product_attention": False,
            "fp8_multi_head_attention": False,
        }
    return settings


def transformer_settings(precision: Precision) -> dict[str, Any]:
    """Fields of Megatron's `TransformerConfig` that a frozen teacher needs beside its types.

    Its weights are cast when they are used. Told which microbatch is the first, Transformer Engine keeps
    the FP8 copies from then on, half as much memory again, also on the device of an offloaded teacher.
    """
    if precision != "fp8":
        return {}
    return {
        "fp8": FP8_FORMAT,
        "fp8_recipe": FP8_RECIPE,
        "disable_parameter_transpose_cache": True,
    }


def check_fp8(
    recipe: Recipe, student: Architecture, teacher: Architecture | None, tokens: int
) -> None:
    """Refuse FP8 where the student's ranks cannot compute it.

    Args:
        recipe: the recipe.
        student: its student.
        teacher: its teacher; looked at where it runs on these ranks. A split one has ranks of its own,
            perhaps on other boards, a cached one has run already.
        tokens: of a microbatch.

    Raises: ConfigError in one line.
    """
    _check("student", recipe.student.precision, recipe.student.parallel, student, tokens)
    if teacher is not None and recipe.teacher is not None and recipe.teacher.placement == "shared":
        check_teacher_fp8(recipe, teacher, tokens)


def check_teacher_fp8(recipe: Recipe, teacher: Architecture, tokens: int) -> None:
    """Refuse an FP8 teacher where its own ranks cannot compute it; arguments and error as for `check_fp8`."""
    assert recipe.teacher is not None
    layout = recipe.teacher.parallel or recipe.student.parallel
    _check("teacher", recipe.teacher.precision, layout, teacher, tokens)


def _check(
    who: str, precision: Precision, layout: Parallel, arch: Architecture, tokens: int
) -> None:
    if precision != "fp8":
        return
    reason = device_lacks_fp8() or fp8_misfit(arch, layout.tensor, tokens)
    if reason:
        raise ConfigError(f"{who}.precision is fp8: {reason}")


def device_lacks_fp8() -> str:
    """Why this machine cannot compute in FP8; empty if it can."""
    if not torch.cuda.is_available():
        return "there is no CUDA device; accepted: fp32 or bf16"
    if importlib.util.find_spec("transformer_engine") is None:
        return (
            "Transformer Engine is not installed (it comes with the NeMo container); accepted: bf16"
        )
    capability = torch.cuda.get_device_capability()
    if capability < FP8_CAPABILITY:
        major, minor = capability
        name = torch.cuda.get_device_name()
        return f"{name} has compute capability {major}.{minor}, FP8 begins at 8.9; accepted: bf16"
    return ""
