"""lm-eval's Hugging Face model, on one device or as one of several ranks that share the items."""

import os
from collections.abc import Iterable
from typing import Any, Final, cast

import psutil
from lm_eval.models.huggingface import HFLM

from ekd_nemo.evals.request import Job, LmSettings
from ekd_nemo.harness.placing import one_gpu_holds

# On a CPU `auto` takes this part of the free memory for logits, of which the harness holds about three copies in fp32.
_SHARE: Final = 0.3
_COPIES: Final = 3
_FP32_BYTES: Final = 4
_MOST_ON_CPU: Final = 16  # beyond, a CPU is no faster
_TRIED: Final = 8  # of the longest texts are counted in tokens


class CpuModel(HFLM):
    """With batches of as many sequences as the longest request leaves memory for.

    The harness finds its own `auto` by running out of memory, which on a CPU ends the process, and for answers written
    out it tries the longest prompt that the model takes, whatever was asked.
    """

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Of answers, given their questions."""
        self._fit(("".join(request.args) for request in requests), 0)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Of whole texts."""
        self._fit((request.args[0] for request in requests), 1)
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
        """Answers written out."""
        asked = [request.args[1].get("max_gen_toks", self.max_gen_toks) for request in requests]
        self._fit((request.args[0] for request in requests), max(asked, default=0))
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _fit(self, texts: Iterable[str], more: int) -> None:
        """Set the batch size by the longest text and `more` tokens beside it."""
        longest = sorted(texts, key=lambda text: len(text.encode()))[-_TRIED:]
        encoded = [cast("list[int]", self.tok_encode(text)) for text in longest]
        length = min(self.max_length, max(map(len, encoded), default=1) + more)
        self.batch_size_per_gpu = fitting(length, self.vocab_size, _free_bytes())


def load_model(job: Job, settings: LmSettings, device: str) -> HFLM:
    """Load the model of a job; below torchrun every rank loads it and takes its part of the items.

    One process spreads a model that a single GPU cannot hold over all that are visible.
    """
    placement: dict[str, Any] = {}
    if device == "cpu" and _world_size() > 1:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # gloo
        # Else it asks safetensors for `cpu:0`, which is none of its devices.
        placement = {"device_map": {"": "cpu"}}
    dtype = (
        settings.dtype if settings.dtype != "auto" else {"cpu": "float32"}.get(device, "bfloat16")
    )
    if device == "cuda" and _world_size() == 1:
        trusted = settings.trust_remote_code
        placement = {"parallelize": not one_gpu_holds(job.model, dtype, trust_remote_code=trusted)}
    on_cpu = device == "cpu" and settings.batch_size == "auto"
    model = (CpuModel if on_cpu else HFLM)(
        pretrained=job.model,
        device=device,
        dtype=dtype,
        batch_size=1 if on_cpu else settings.batch_size,
        max_batch_size=256,
        trust_remote_code=settings.trust_remote_code,
        use_safetensors=True,
        **placement,
    )
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


def fitting(length: int, vocab_size: int, free_bytes: float) -> int:
    """Sequences of `length` tokens whose logits take the harness's share of the free memory; at least one."""
    each = length * vocab_size * _FP32_BYTES * _COPIES
    return max(1, min(_MOST_ON_CPU, int(free_bytes * _SHARE // each)))


def _free_bytes() -> float:
    """Of this rank's part of the machine."""
    return psutil.virtual_memory().available / _world_size()


def chosen_batch(model: HFLM) -> int | None:
    """Sequences at once: as given, or as `auto` has found for the longest; None if nothing was run."""
    if model.batch_size_per_gpu != "auto":
        return int(model.batch_size_per_gpu)
    found = list(getattr(model, "batch_sizes", {}).values())
    return min(found) if found else None
