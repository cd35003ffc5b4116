"""Exports of checkpoints with adapters: merged by default, alone on demand, refused where neither can be right."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ekd_nemo.errors import CheckpointError
from ekd_nemo.models.convert import export_checkpoint
from ekd_nemo.models.weights import FolderSource
from tests.e2e.training import Pair, make_run, write_model
from tests.unit.launch.conftest import write_tokenizer
from tests.unit.models.test_convert import ARCH, megatron_state, save

RANK, ALPHA = 2, 6
# fp32 sums of numbers up to 20 in size.
CLOSE = 1e-6
QKV, DOWN = "self_attention.linear_qkv", "mlp.linear_fc2"


def adapters(stacked: bool) -> dict[str, Tensor]:
    """Of two of the four matrices, layers stacked or by number."""
    draw = torch.Generator().manual_seed(4)
    rows = {QKV: 8 * ARCH.head_dim, DOWN: ARCH.hidden_size}
    inputs = {QKV: ARCH.hidden_size, DOWN: ARCH.ffn_size}
    state: dict[str, Tensor] = {}
    for matrix in (QKV, DOWN):
        shapes = {"linear_in": (RANK, inputs[matrix]), "linear_out": (rows[matrix], RANK)}
        for side, shape in shapes.items():
            whole = torch.randn(ARCH.num_layers, *shape, generator=draw)
            name = f"{matrix}.adapter.{side}.weight"
            if stacked:
                state[f"module.decoder.layers.{name}"] = whole
            else:
                state |= {f"module.decoder.layers.{i}.{name}": w for i, w in enumerate(whole)}
    return state


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_model(tmp_path / "base", ARCH, seed=3)
    write_tokenizer(tmp_path / "base", ["a"])
    return tmp_path / "base"


def checkpoint_in_a_run(base: Path, stacked: bool = True, **changes: Any) -> Path:
    """A checkpoint with adapters in the run directory that says what they are."""
    pair = Pair(Path("teacher"), base, Path("data"))
    given: dict[str, Any] = {
        "student__lora": {"rank": RANK, "alpha": ALPHA, "dropout": 0.1},
        "student__init": {"source": "checkpoint", "path": str(base)},
    }
    run = make_run(base.parent / "run", pair, **given | changes)
    state = megatron_state(base, stacked) | adapters(stacked)
    return save(state, run / "checkpoints" / "step_0000001")


@pytest.mark.parametrize("stacked", [True, False])
def test_the_export_merges(base: Path, tmp_path: Path, stacked: bool) -> None:
    out = export_checkpoint(checkpoint_in_a_run(base, stacked), tmp_path / "out", like=base)
    found, start, layers = FolderSource(out), FolderSource(base), adapters(stacked=True)
    for layer in range(ARCH.num_layers):
        down = f"model.layers.{layer}.mlp.down_proj.weight"
        a, b = (
            layers[f"module.decoder.layers.{DOWN}.adapter.{side}.weight"][layer]
            for side in ("linear_in", "linear_out")
        )
        expected = start.get(down) + ALPHA / RANK * b @ a
        torch.testing.assert_close(found.get(down), expected, rtol=CLOSE, atol=CLOSE)
        for name in ("self_attn.o_proj", "mlp.up_proj", "input_layernorm"):
            key = f"model.layers.{layer}.{name}.weight"
            assert torch.equal(found.get(key), start.get(key))
        for letter in "qkv":
            key = f"model.layers.{layer}.self_attn.{letter}_proj.weight"
            assert not torch.allclose(found.get(key), start.get(key), atol=0.01)
            bias = key.replace("weight", "bias")
            assert torch.equal(found.get(bias), start.get(bias))


def test_adapters_alone_are_those_that_the_merged_weights_have(base: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_in_a_run(base)
    merged = FolderSource(export_checkpoint(checkpoint, tmp_path / "hf", like=base))
    out = export_checkpoint(checkpoint, tmp_path / "adapter", like=base, adapter=True)
    tensors, start = load_file(out / "adapter_model.safetensors"), FolderSource(base)
    assert len(tensors) == 2 * 4 * ARCH.num_layers  # of query, key, value and down
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            matrix = name.removeprefix("base_model.model.").replace("lora_A.", "")
            expected = start.get(matrix) + ALPHA / RANK * b @ a
            torch.testing.assert_close(merged.get(matrix), expected, rtol=CLOSE, atol=CLOSE)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "k_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (RANK, ALPHA, 0.1)
    assert config["base_model_name_or_path"] == str(base)


def test_alpha_is_not_guessed(base: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_in_a_run(base)
    moved = checkpoint.rename(tmp_path / "moved")
    for adapter in (False, True):
        with pytest.raises(
            CheckpointError, match="accepted: a checkpoint inside its run directory"
        ):
            export_checkpoint(moved, tmp_path / "out", like=base, adapter=adapter)
    assert not (tmp_path / "out").exists()


def test_adapters_alone_need_adapters_and_a_base(base: Path, tmp_path: Path) -> None:
    bare = save(megatron_state(base), tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"holds no adapters; accepted: .* without --adapter"):
        export_checkpoint(bare, tmp_path / "out", like=base, adapter=True)
    start = {"source": "random", "path": str(base)}
    drawn = checkpoint_in_a_run(base, student__init=start)
    with pytest.raises(CheckpointError, match="began from source random .* without --adapter"):
        export_checkpoint(drawn, tmp_path / "out", like=base, adapter=True)
    assert not (tmp_path / "out").exists()
