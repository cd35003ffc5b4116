"""Adapters on real Megatron ranks: the start changes nothing, only they learn, the export is as they."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ekd_nemo.config.recipe import Lora
from ekd_nemo.models.convert import export_checkpoint
from ekd_nemo.planner.layout import Layout, lora_parameters
from tests.distributed.gpt_ranks import filled, logits, start_parallel
from tests.distributed.ranks import run_ranks
from tests.e2e.training import TEACHER, Pair, make_run, write_model
from tests.forkserver import forkserver
from tests.unit.launch.conftest import write_tokenizer

ARCH = replace(TEACHER, family="qwen2", qkv_bias=True, tied_embeddings=False)
LORA = Lora(rank=4, alpha=8)
TOKENS = torch.randint(0, ARCH.vocab_size, (2, 16), generator=torch.Generator().manual_seed(3))
LAYOUTS = {"one": (1, 1), "tensor": (2, 1), "pipeline": (1, 2)}
# fp32; other orders of summation over tensor ranks and in the merged product. Logits here are up to 10 in size.
TOLERANCE = 1e-5
Found = dict[str, Any]


@dataclass(frozen=True)
class Adapted:
    """What each layout found, and the checkpoint of the one rank."""

    found: dict[str, Found]
    base: Path
    checkpoint: Path


def adapted(rank: int, world: int, base: Path, weights: Path, layout: tuple[int, int]) -> Found:
    """Logits before and after wrapping, and with B as if trained; what would learn."""
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    from ekd_nemo.backend import cpu
    from ekd_nemo.models.lora import add_adapters
    from ekd_nemo.models.weights import FolderSource

    start_parallel(*layout)
    cpu.install()
    model = filled(FolderSource(base), *layout)
    found: Found = {"bare": logits(model, TOKENS)}
    found["wrapped"] = add_adapters(model, LORA, seed=3)
    found["start"] = logits(model, TOKENS)
    learning = {name: each for name, each in model.named_parameters() if each.requires_grad}
    found["learning"] = list(learning)
    found["numbers"] = sum(each.numel() for each in learning.values())
    _fill_b(model)
    found["trained"] = logits(model, TOKENS)
    dist_checkpointing.save(model.sharded_state_dict(prefix="module."), str(weights))
    dist.barrier()
    return found


@torch.no_grad()
def _fill_b(model: Any) -> None:
    """B as if trained: the same whole matrix, however it is cut."""
    from megatron.core import parallel_state

    from ekd_nemo.parallel.taps import layers_of

    size = parallel_state.get_tensor_model_parallel_world_size()
    rank = parallel_state.get_tensor_model_parallel_rank()
    for number, layer in layers_of(model).items():
        for name, weight in layer.named_parameters():
            if not name.endswith("linear_out.weight"):
                continue
            seed = hashlib.blake2b(f"{number}.{name}".encode(), digest_size=4).digest()
            draw = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
            whole = 0.1 * torch.randn(len(weight) * size, weight.shape[1], generator=draw)
            # Gate and up are cut apart from each other.
            blocks = whole.chunk(2) if "linear_fc1" in name else (whole,)
            weight.copy_(torch.cat([block.chunk(size)[rank] for block in blocks]))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """Every layout once; checkpoints lie in run directories whose recipes say alpha."""
    folder = tmp_path_factory.mktemp("lora")
    base, found = folder / "base", dict[str, Found]()
    write_model(base, ARCH, seed=7)
    write_tokenizer(base, ["a"])
    start = {"source": "checkpoint", "path": str(base)}
    for name, layout in LAYOUTS.items():
        pair = Pair(Path("teacher"), base, Path("data"))
        make_run(folder / name, pair, student__lora=LORA.model_dump(), student__init=start)
        weights = folder / name / "checkpoints" / "step_0000001" / "weights"
        weights.mkdir(parents=True)
        world = layout[0] * layout[1]
        results = run_ranks(
            adapted,
            world,
            folder,
            base,
            weights,
            layout,
            timeout_s=300,
            context=forkserver(),
        )
        found[name] = results[-1] | {"all": results}
    return Adapted(found, base, folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wrapping_changes_nothing_and_only_adapters_learn(ranks: Adapted, layout: str) -> None:
    found = ranks.found[layout]
    assert torch.equal(found["start"], found["bare"])
    assert not torch.allclose(found["trained"], found["bare"], atol=0.01)
    stages = LAYOUTS[layout][1]
    for each in found["all"]:
        assert each["wrapped"] == 4 * ARCH.num_layers // stages
        assert len(each["learning"]) == 2 * each["wrapped"]
        assert all(".adapter." in name for name in each["learning"])
        assert each["numbers"] == lora_parameters(
            ARCH, Layout(*LAYOUTS[layout]), LORA.rank, LORA.target_modules
        )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "one"])
def test_the_layout_does_not_decide_the_start(ranks: Adapted, layout: str) -> None:
    torch.testing.assert_close(
        ranks.found[layout]["trained"],
        ranks.found["one"]["trained"],
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_merged_export_computes_what_the_adapters_did(
    ranks: Adapted, layout: str, tmp_path: Path
) -> None:
    checkpoint = ranks.checkpoint / layout / "checkpoints" / "step_0000001"
    out = export_checkpoint(checkpoint, tmp_path / "hf", like=ranks.base)
    assert_logits(hf_model(out), ranks.found[layout]["trained"])
    assert not list(out.glob("adapter*"))


def test_peft_puts_the_unmerged_export_on_the_base(ranks: Adapted, tmp_path: Path) -> None:
    from peft import PeftModel

    checkpoint = ranks.checkpoint / "one" / "checkpoints" / "step_0000001"
    out = export_checkpoint(checkpoint, tmp_path / "adapter", like=ranks.base, adapter=True)
    names = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    assert {file.name for file in out.iterdir()} == names
    model = PeftModel.from_pretrained(hf_model(ranks.base), out)
    assert model.peft_config["default"].base_model_name_or_path == str(ranks.base)
    assert_logits(model, ranks.found["one"]["trained"])


def hf_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def assert_logits(model: Any, expected: Tensor) -> None:
    found = model(TOKENS).logits
    expected = expected[..., : ARCH.vocab_size]
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
