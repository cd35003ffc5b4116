"""What Megatron-Core and NeMo need to run without CUDA: one table of named patches.

Each patch says why it is there and which place upstream needs it. `install` does nothing on a
machine with CUDA and may be called any number of times. Found with torch 2.13.0, megatron-core
0.15.3 and nemo_toolkit 2.7.3; `tests/unit/backend` fails when a patch is no longer needed or no
longer fits.
"""

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Patch:
    """One replacement in somebody else's module.

    Attributes:
        name: what is replaced.
        reason: what goes wrong without it.
        needed_by: `file:line` of the place upstream that needs it, at the pinned versions.
        package: whose code is changed; `nemo` patches are left out where NeMo is not loaded.
        install: makes the replacement.
    """

    name: str
    reason: str
    needed_by: str
    package: Literal["torch", "megatron", "nemo"]
    install: Callable[[], None]


class InertStream:
    """Stands for a CUDA stream: CPU work is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept what `torch.cuda.Stream` accepts."""

    def wait_stream(self, stream: Any) -> None:
        """Return at once."""


class CpuForCuda(TorchFunctionMode):
    """Sends what asks for the `cuda` device to the CPU.

    Covers `Tensor.cuda()`, `Tensor.to("cuda")`, factories with `device="cuda"` or
    `pin_memory=True`, and `Tensor.type()` without arguments, which Megatron compares with the names
    of CUDA tensor types.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run `func` with the device replaced."""
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if kwargs:
            if _names_cuda(kwargs.get("device")):
                kwargs = {**kwargs, "device": _CPU}
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        return func(*args, **kwargs)


def _names_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, torch.device) and device.type == "cuda"


def _current_device() -> None:
    torch.cuda.current_device = lambda: _CPU


def _synchronize() -> None:
    torch.cuda.synchronize = lambda device=None: None


def _streams() -> None:
    torch.cuda.Stream = InertStream
    torch.cuda.stream = lambda stream: nullcontext()


def _rng_state() -> None:
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    torch.cuda.get_rng_state = torch.cuda.random.get_rng_state = get_rng_state
    torch.cuda.manual_seed = torch.default_generator.manual_seed


def _tensors() -> None:
    # Entered for good. A mode holds for its thread; CPU autograd goes backward in the same thread.
    CpuForCuda().__enter__()


def _tracker_state() -> None:
    random = importlib.import_module("megatron.core.tensor_parallel.random")

    def set_state(new_state: torch.Tensor, device: int = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    random._set_cuda_rng_state = set_state


def _seed_tracker() -> None:
    megatron_init = importlib.import_module("nemo.lightning.megatron_init")
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    seed_nemo = megatron_init._set_random_seed

    def set_random_seed(seed_: int) -> None:
        seed_nemo(seed_)
        pipeline_rank = megatron_init.get_pipeline_model_parallel_rank()
        random.model_parallel_cuda_manual_seed(seed_ + 100 * pipeline_rank)

    megatron_init._set_random_seed = set_random_seed


def _resume_device() -> None:
    importlib.import_module("nemo.lightning.io.pl")._fix_tensors_device = lambda ckpt: ckpt


def _adapters_linear() -> None:
    class NoLinear:
        """Stands for Transformer Engine's linear layer: nothing is one."""

    lora = importlib.import_module("nemo.collections.llm.peft.lora")
    lora.te = SimpleNamespace(Linear=NoLinear)


def _adapters_engine() -> None:
    importlib.import_module("nemo.collections.llm.peft.utils").HAVE_TE = False


PATCHES: tuple[Patch, ...] = (
    Patch(
        "torch.cuda.current_device",
        "raises without CUDA; returns the CPU device, which every `device=` argument takes",
        "megatron/core/distributed/param_and_grad_buffer.py:725",
        "torch",
        _current_device,
    ),
    Patch(
        "torch.cuda.synchronize",
        "raises without CUDA; CPU work is finished when it returns",
        "megatron/core/dist_checkpointing/strategies/filesystem_async.py:230",
        "torch",
        _synchronize,
    ),
    Patch(
        "torch.cuda.Stream, torch.cuda.stream",
        "NeMo builds its data-parallel wrapper on a side stream",
        "nemo/lightning/megatron_parallel.py:617",
        "torch",
        _streams,
    ),
    Patch(
        "torch.cuda.get_rng_state, torch.cuda.manual_seed",
        "Megatron's random state tracker records CUDA generators; the CPU's take their place",
        "megatron/core/tensor_parallel/random.py:196",
        "torch",
        _rng_state,
    ),
    Patch(
        "tensor devices and type names",
        "Megatron and NeMo write `cuda` into tensor calls and compare `Tensor.type()` with it",
        "megatron/core/optimizer/optimizer.py:686",
        "torch",
        _tensors,
    ),
    Patch(
        "megatron random._set_cuda_rng_state",
        "queues its work for a CUDA start that never comes: the state is silently not restored",
        "megatron/core/tensor_parallel/random.py:201",
        "megatron",
        _tracker_state,
    ),
    Patch(
        "nemo megatron_init._set_random_seed",
        "seeds Megatron's random state tracker only where it counts a GPU; its users then raise",
        "nemo/lightning/megatron_init.py:238",
        "nemo",
        _seed_tracker,
    ),
    Patch(
        "nemo io.pl._fix_tensors_device",
        "asserts on resume that CUDA is initialised",
        "nemo/lightning/io/pl.py:495",
        "nemo",
        _resume_device,
    ),
    Patch(
        "nemo peft.lora.te",
        "asks of every matrix whether it is Transformer Engine's, and raises where that is missing",
        "nemo/collections/llm/peft/lora.py:703",
        "nemo",
        _adapters_linear,
    ),
    Patch(
        "nemo peft.utils.HAVE_TE",
        "is true without Transformer Engine, as Megatron then names some of its layers None",
        "nemo/collections/llm/peft/utils.py:77",
        "nemo",
        _adapters_engine,
    ),
)

_installed: set[str] = set()


def install(*, nemo: bool = True) -> tuple[str, ...]:
    """Install the patches that are not installed yet.

    Args:
        nemo: also patch NeMo, which imports it (15 to 35 s); False suits plain Megatron-Core.

    Returns:
        The names of the patches installed by this call; empty on a machine with CUDA.
    """
    if torch.cuda.is_available():
        return ()
    chosen = [p for p in PATCHES if p.name not in _installed and (nemo or p.package != "nemo")]
    for patch in chosen:
        patch.install()
        _installed.add(patch.name)
    return tuple(patch.name for patch in chosen)


def transformer_overrides() -> dict[str, Any]:
    """Fields of Megatron's `TransformerConfig` that must differ without CUDA; empty with CUDA.

    The fused paths need Transformer Engine, Apex or CUDA.
    """
    if torch.cuda.is_available():
        return {}
    return {
        "use_cpu_initialization": True,
        "apply_rope_fusion": False,
        "masked_softmax_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "gradient_accumulation_fusion": False,
        "persist_layer_norm": False,
        "cross_entropy_loss_fusion": False,
    }
