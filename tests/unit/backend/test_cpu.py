"""Every patch is needed, for the reason that the table gives, and does what it is for.

Each probe is a real call of torch, Megatron-Core or NeMo. It runs in a process of its own, once
with all patches and once with all but its own. A probe that passes without its patch says that the
patch can go; one that fails with it says that it no longer fits.
"""

import dataclasses
import inspect
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ekd_nemo.backend import cpu
from tests.forkserver import forkserver

pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="the patches are for machines without CUDA"
    ),
    pytest.mark.timeout(300),
]


def wrap_for_data_parallel() -> None:
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer import TransformerConfig

    store = dist.FileStore(f"{tempfile.mkdtemp()}/store", 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
    DistributedDataParallel(config, DistributedDataParallelConfig(), torch.nn.Linear(2, 2))


def preload_a_checkpoint() -> None:
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    FileSystemWriterAsync.preload_tensors([], non_blocking=True)


def enter_a_side_stream() -> None:
    from nemo.lightning.megatron_parallel import MegatronParallel

    source = inspect.getsource(MegatronParallel.init_model_parallel)
    assert "with torch.cuda.stream(torch.cuda.Stream()):" in source
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.ones(1)


def add_a_random_state() -> None:
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    CudaRNGStatesTracker().add("a", 1)


def keep_the_random_state() -> None:
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    before = torch.get_rng_state()
    CudaRNGStatesTracker().add("a", 1)
    assert torch.equal(torch.get_rng_state(), before), "the state was not restored"


def make_a_gradient_scaler() -> None:
    from megatron.core.optimizer.grad_scaler import ConstantGradScaler

    assert ConstantGradScaler(1.0).scale.device.type == "cpu"


def clip_gradients() -> None:
    from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    clip_grad_by_total_norm_fp32([parameter], 1.0, 2.0)
    assert parameter.grad.tolist() == pytest.approx([0.5, 0.5])


def log_a_number() -> None:
    from nemo.lightning.pytorch.strategies import MegatronStrategy

    source = inspect.getsource(MegatronStrategy.training_step)
    call = 'torch.tensor(self.trainer.global_step, pin_memory=True).to("cuda", non_blocking=True)'
    assert call in source
    assert torch.tensor(3, pin_memory=True).to("cuda", non_blocking=True).item() == 3


def load_an_optimizer_state() -> None:
    from megatron.core.optimizer.grad_scaler import DynamicGradScaler

    assert ".cuda(torch.cuda.current_device())" in inspect.getsource(DynamicGradScaler)
    assert torch.ones(1).cuda(torch.cuda.current_device()).item() == 1.0


def seed_the_tracker() -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
    from nemo.lightning import megatron_init

    parallel_state.set_tensor_model_parallel_rank(0)
    parallel_state.set_pipeline_model_parallel_rank(0)
    parallel_state.set_expert_model_parallel_rank(0)
    parallel_state.set_expert_tensor_parallel_rank(0)
    megatron_init._set_random_seed(5)
    with get_cuda_rng_tracker().fork():
        torch.rand(1)


def load_a_checkpoint() -> None:
    from nemo.lightning.io.pl import MegatronCheckpointIO

    module = inspect.getmodule(MegatronCheckpointIO)
    assert "_fix_tensors_device(checkpoint)" in inspect.getsource(
        MegatronCheckpointIO.load_checkpoint
    )
    assert module._fix_tensors_device({"a": 1}) == {"a": 1}


def wrap_a_matrix() -> None:
    import torch.distributed as dist
    from megatron.core import ModelParallelConfig, parallel_state
    from megatron.core.tensor_parallel import ColumnParallelLinear
    from nemo.collections.llm.peft.lora import LoRA, LoRALinear

    store = dist.FileStore(f"{tempfile.mkdtemp()}/store", 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    config = ModelParallelConfig(use_cpu_initialization=True)
    linear = ColumnParallelLinear(2, 2, config=config, init_method=torch.nn.init.zeros_)
    wrapped = LoRA(target_modules=["linear_qkv"], dim=1).transform(linear, "linear_qkv")
    assert isinstance(wrapped, LoRALinear)


PROBES: tuple[tuple[str, Callable[[], None], str], ...] = (
    ("torch.cuda.current_device", wrap_for_data_parallel, "CUDA"),
    ("torch.cuda.synchronize", preload_a_checkpoint, "CUDA"),
    ("torch.cuda.Stream, torch.cuda.stream", enter_a_side_stream, "Stream"),
    ("torch.cuda.get_rng_state, torch.cuda.manual_seed", add_a_random_state, "CUDA"),
    ("tensor devices and type names", make_a_gradient_scaler, "CUDA"),
    ("tensor devices and type names", clip_gradients, "AssertionError"),
    ("tensor devices and type names", log_a_number, ""),
    ("tensor devices and type names", load_an_optimizer_state, "must be cuda device"),
    ("megatron random._set_cuda_rng_state", keep_the_random_state, "not restored"),
    ("nemo megatron_init._set_random_seed", seed_the_tracker, "is not added"),
    ("nemo io.pl._fix_tensors_device", load_a_checkpoint, "AssertionError"),
    ("nemo peft.lora.te", wrap_a_matrix, "UnavailableError"),
    ("nemo peft.utils.HAVE_TE", wrap_a_matrix, "isinstance() arg 2"),
)


def outcome(probe: Callable[[], None], left_out: str | None, tmp_path: Path) -> str:
    """What the probe raised, empty if nothing, in a process with all patches but one."""
    file = tmp_path / "outcome"
    process = forkserver().Process(target=_probe, args=(probe, left_out, file))
    process.start()
    process.join(120)
    process.kill()
    assert file.exists(), f"the probe ended with {process.exitcode}"
    text = file.read_text()
    file.unlink()
    return text


def _probe(probe: Callable[[], None], left_out: str | None, file: Path) -> None:
    for patch in cpu.PATCHES:
        if patch.name != left_out:
            patch.install()
    try:
        probe()
    except Exception as error:  # the probe's verdict, whatever it is
        file.write_text(f"{type(error).__name__}: {error}")
    else:
        file.write_text("")
    os._exit(0)


@pytest.mark.parametrize(
    ("name", "probe", "says"), PROBES, ids=lambda x: getattr(x, "__name__", "")
)
def test_patch_is_needed_and_fits(name: str, probe, says: str, tmp_path: Path) -> None:
    assert outcome(probe, None, tmp_path) == ""
    without = outcome(probe, name, tmp_path)
    assert without, f"{name} is no longer needed"
    assert says in without


def test_every_patch_has_a_probe_and_a_place() -> None:
    assert {patch.name for patch in cpu.PATCHES} == {name for name, _, _ in PROBES}
    packages = Path(inspect.getfile(torch)).parents[1]
    for patch in cpu.PATCHES:
        file, line = patch.needed_by.split(":")
        assert (packages / file).is_file(), patch.name
        assert int(line) <= len((packages / file).read_text().splitlines()), patch.name


def test_overrides_are_fields_of_the_configuration() -> None:
    from megatron.core.transformer import TransformerConfig

    fields = {field.name for field in dataclasses.fields(TransformerConfig)}
    assert set(cpu.transformer_overrides()) <= fields


def test_nothing_is_done_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.cuda.synchronize
    assert cpu.install() == ()
    assert cpu.transformer_overrides() == {}
    assert torch.cuda.synchronize is before


def _install_twice(file: Path) -> None:
    first, second = cpu.install(nemo=False), cpu.install(nemo=False)
    third = cpu.install()
    file.write_text(f"{len(first)} {len(second)} {len(third)}")
    os._exit(0)


def test_installing_twice_is_installing_once(tmp_path: Path) -> None:
    file = tmp_path / "counts"
    process = forkserver().Process(target=_install_twice, args=(file,))
    process.start()
    process.join(120)
    nemo = sum(patch.package == "nemo" for patch in cpu.PATCHES)
    assert file.read_text() == f"{len(cpu.PATCHES) - nemo} 0 {nemo}"
