"""lm-eval's Hugging Face model, on one device or as one of several ranks that share the items."""

import os
from typing import Any, Final

import psutil
from lm_eval.models.huggingface import HFLM

from ekd_nemo.evals.request import Job, LmSettings

# On a CPU `auto` takes this part of the free memory for logits, of which the harness holds about three copies in fp32.
_SHARE: Final = 0.3
_COPIES: Final = 3
_FP32_BYTES: Final = 4
_MOST_ON_CPU: Final = 16  # beyond, a CPU is no faster


def load_model(job: Job, settings: LmSettings, device: str) -> HFLM:
    """Load the model of a job; below torchrun every rank loads it and takes its part of the items."""
    placement: dict[str, Any] = {}
    if device == "cpu" and _world_size() > 1:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # gloo
        # Else it asks safetensors for `cpu:0`, which is none of its devices.
        placement = {"device_map": {"": "cpu"}}
    dtype = (
        settings.dtype if settings.dtype != "auto" else {"cpu": "float32"}.get(device, "bfloat16")
    )
    on_cpu = device == "cpu" and settings.batch_size == "auto"
    model = HFLM(
        pretrained=job.model,
        device=device,
        dtype=dtype,
        batch_size=1 if on_cpu else settings.batch_size,
        max_batch_size=256,
        trust_remote_code=settings.trust_remote_code,
        use_safetensors=True,
        **placement,
    )
    if on_cpu:
        model.batch_size_per_gpu = _fitting(model)
    _join_ranks(model)
    return model


def _join_ranks(model: HFLM) -> None:
    """Share the items: lm-eval 0.4.13 does so only where a rank sees several GPUs, not on CPUs or with a GPU a node."""
    accelerator = getattr(model, "accelerator", None)
    if accelerator is not None and accelerator.num_processes > 1:
        model._rank = accelerator.process_index
        model._world_size = accelerator.num_processes


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _fitting(model: HFLM) -> int:
    """Sequences of full length whose logits fit the memory that is free."""
    free = psutil.virtual_memory().available * _SHARE / _world_size()
    each = model.max_length * model.vocab_size * _FP32_BYTES * _COPIES
    return max(1, min(_MOST_ON_CPU, int(free // each)))


def chosen_batch(model: HFLM) -> int | None:
    """Sequences at once: as given, or as `auto` has found for the longest; None if nothing was run."""
    if model.batch_size_per_gpu != "auto":
        return int(model.batch_size_per_gpu)
    found = list(getattr(model, "batch_sizes", {}).values())
    return min(found) if found else None
