"""Tensors by name: sources, the cuts that Megatron makes of them, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.errors import CheckpointError, ConfigError, LayoutError
from ekd_nemo.models.weights import (
    FolderSource,
    LayerSubsetSource,
    RandomSource,
    load_weights,
    tensor_shapes,
)
from ekd_nemo.models.weights.parts import (
    LAYER_PARTS,
    TOP_PARTS,
    Rank,
    VocabRows,
    canonical,
    find_part,
    layer_parts,
    top_parts,
)

QWEN = Architecture(
    family="qwen2",
    num_layers=4,
    hidden_size=24,
    ffn_size=20,
    num_heads=8,
    num_kv_groups=4,
    head_dim=6,
    vocab_size=50,
    rope_theta=1e6,
    rope_scaling=None,
    norm_eps=1e-6,
    tied_embeddings=False,
    qkv_bias=True,
    max_positions=64,
    initializer_range=0.02,
)

# Parameters of a GPTModel of Transformer Engine layers (dense, RMSNorm, QKV bias, untied), written
# out from the sources of megatron-core 0.15.3: gpt_layer_specs.py, attention.py, mlp.py, and the
# names in Transformer Engine's LayerNormLinear (layer_norm_weight, weight, bias).
# Transformer Engine does not run on a CPU, so no model of it is built here.
TE_LAYER = [
    "self_attention.linear_proj.weight",
    "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "mlp.linear_fc1.layer_norm_weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
]
LOCAL_LAYER = [
    "input_layernorm.weight",
    "self_attention.linear_proj.weight",
    "self_attention.linear_qkv.weight",
    "self_attention.linear_qkv.bias",
    "pre_mlp_layernorm.weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
]
TOP = ["embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"]


class CountedSource(RandomSource):
    """A random source with biases and norms that differ, which records what was read of it."""

    def __init__(self, architecture: Architecture, seed: int) -> None:
        super().__init__(architecture, seed)
        self.read: list[tuple[str, int]] = []

    def get(self, name: str) -> Tensor:
        shape = tensor_shapes(self.architecture)[name]
        start = sum(map(ord, name)) * 1000
        return torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.float64).reshape(
            shape
        )

    def get_rows(self, name: str, start: int, stop: int) -> Tensor:
        self.read.append((name, stop - start))
        return self.get(name)[start:stop]


def write_folder(folder: Path, arch: Architecture, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(arch.to_hf_config()))
    save_file(tensors, folder / "model.safetensors")


def random_tensors(arch: Architecture) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = tensor_shapes(arch).items()
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes}


@pytest.mark.parametrize("layer", [TE_LAYER, LOCAL_LAYER])
def test_both_layer_specs_cover_every_hf_tensor_once(layer: list[str]) -> None:
    names = [f"decoder.layers.{i}.{part}" for i in range(QWEN.num_layers) for part in layer]
    produced: list[str] = []
    source = RandomSource(QWEN, 0)
    for name in map(canonical, names + TOP):
        found = find_part(name)
        assert found is not None, name
        part, index = found
        prefix = "" if index is None else f"model.layers.{index}."
        produced += part.split(part.read(source, prefix, Rank()), QWEN, prefix)
    assert sorted(produced) == sorted(tensor_shapes(QWEN))


def test_both_specs_have_the_same_canonical_names() -> None:
    local = {canonical(f"decoder.layers.3.{part}") for part in LOCAL_LAYER}
    assert local == {f"decoder.layers.3.{part}" for part in TE_LAYER}
    assert set(LAYER_PARTS) == set(TE_LAYER)
    assert set(TOP_PARTS) == set(TOP)


@pytest.mark.parametrize("name", sorted(LAYER_PARTS))
def test_a_part_read_and_split_gives_the_tensors_back(name: str) -> None:
    source, prefix = CountedSource(QWEN, 0), "model.layers.2."
    part = LAYER_PARTS[name]
    pieces = part.split(part.read(source, prefix, Rank()), QWEN, prefix)
    assert pieces
    for hf_name, piece in pieces.items():
        assert torch.equal(piece, source.get(hf_name))


def test_queries_keys_and_values_are_interleaved_by_group() -> None:
    source, prefix = CountedSource(QWEN, 0), "model.layers.0."
    found = LAYER_PARTS["self_attention.linear_qkv.weight"].read(source, prefix, Rank(1, 4))
    q, k, v = (source.get(f"{prefix}self_attn.{letter}_proj.weight") for letter in "qkv")
    assert torch.equal(found, torch.cat([q[12:24], k[6:12], v[6:12]]))


def test_gate_and_up_of_a_rank_are_its_own_rows() -> None:
    source, prefix = CountedSource(QWEN, 0), "model.layers.0."
    found = LAYER_PARTS["mlp.linear_fc1.weight"].read(source, prefix, Rank(1, 2))
    gate, up = (source.get(f"{prefix}mlp.{part}_proj.weight") for part in ("gate", "up"))
    assert torch.equal(found, torch.cat([gate[10:], up[10:]]))
    assert source.read == [
        (f"{prefix}mlp.gate_proj.weight", 10),
        (f"{prefix}mlp.up_proj.weight", 10),
    ]


def test_row_parallel_matrices_are_cut_along_their_input() -> None:
    source, prefix = CountedSource(QWEN, 0), "model.layers.0."
    found = LAYER_PARTS["mlp.linear_fc2.weight"].read(source, prefix, Rank(1, 2))
    assert torch.equal(found, source.get(f"{prefix}mlp.down_proj.weight")[:, 10:])


@pytest.mark.parametrize(("rank", "real"), [(0, 32), (1, 18), (2, 0), (3, 0)])
def test_vocabulary_padding_is_zero(rank: int, real: int) -> None:
    source = CountedSource(QWEN, 0)
    part = TOP_PARTS["embedding.word_embeddings.weight"]
    assert isinstance(part, VocabRows)
    found = part.read_padded(source, Rank(rank, 4), 32)
    whole = source.get("model.embed_tokens.weight")
    assert found.shape == (32, QWEN.hidden_size)
    assert torch.equal(found[:real], whole[32 * rank : 32 * rank + real])
    assert found[real:].abs().sum() == 0


def test_a_tied_head_is_the_embedding_and_is_not_stored() -> None:
    tied = Architecture(**(vars(QWEN) | {"tied_embeddings": True}))
    source = CountedSource(tied, 0)
    part = TOP_PARTS["output_layer.weight"]
    assert torch.equal(part.read(source, "", Rank()), source.get("model.embed_tokens.weight"))
    assert "output_layer.weight" not in top_parts(tied)
    assert "lm_head.weight" not in tensor_shapes(tied)


def test_llama_has_no_bias() -> None:
    llama = Architecture(**(vars(QWEN) | {"family": "llama", "qkv_bias": False}))
    assert "self_attention.linear_qkv.bias" not in layer_parts(llama)
    assert not [name for name in tensor_shapes(llama) if name.endswith("bias")]


def test_a_random_tensor_depends_on_seed_and_name_only() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    first, again = RandomSource(QWEN, 1), RandomSource(QWEN.with_layers(2), 1)
    assert torch.equal(first.get(name), again.get(name))
    assert torch.equal(first.get_rows(name, 3, 9), first.get(name)[3:9])
    assert torch.equal(first.get_columns(name, 3, 9), first.get(name)[:, 3:9])
    assert not torch.equal(first.get(name), RandomSource(QWEN, 2).get(name))
    assert not torch.equal(first.get(name), first.get("model.layers.2.mlp.up_proj.weight"))
    assert first.get(name).std().item() == pytest.approx(0.02, rel=0.1)  # 480 draws
    assert torch.equal(first.get("model.norm.weight"), torch.ones(24))


def test_a_layer_subset_renumbers() -> None:
    source = RandomSource(QWEN, 1)
    subset = LayerSubsetSource(source, [0, 3])
    assert subset.architecture.num_layers == 2
    name = "mlp.up_proj.weight"
    assert torch.equal(subset.get(f"model.layers.1.{name}"), source.get(f"model.layers.3.{name}"))
    assert torch.equal(subset.get("model.norm.weight"), source.get("model.norm.weight"))


@pytest.mark.parametrize("keep", [[], [1, 0], [0, 0], [-1], [0, 4]])
def test_a_wrong_layer_list_is_refused(keep: list[int]) -> None:
    with pytest.raises(ConfigError, match="accepted are ascending numbers from 0 to 3"):
        LayerSubsetSource(RandomSource(QWEN, 1), keep)


def test_a_folder_gives_its_tensors(tmp_path: Path) -> None:
    tensors = random_tensors(QWEN)
    write_folder(tmp_path, QWEN, tensors)
    source = FolderSource(tmp_path)
    assert source.architecture == QWEN
    name = "model.layers.3.mlp.down_proj.weight"
    assert torch.equal(source.get(name), tensors[name])
    assert torch.equal(source.get_rows(name, 2, 5), tensors[name][2:5])
    assert torch.equal(source.get_columns(name, 2, 5), tensors[name][:, 2:5])
    assert all(torch.equal(source.get(key), value) for key, value in tensors.items())


def test_a_sharded_folder_gives_the_same(tmp_path: Path) -> None:
    tensors = random_tensors(QWEN)
    write_folder(tmp_path, QWEN, tensors)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    source = FolderSource(tmp_path)
    assert all(torch.equal(source.get(key), value) for key, value in tensors.items())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names b\.safetensors, which is not in the folder"):
        FolderSource(tmp_path)
    index.write_text('{"weight_map": {"x": "../b.safetensors"}}')
    with pytest.raises(CheckpointError, match="not in the folder"):
        FolderSource(tmp_path)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="not an index"):
        FolderSource(tmp_path)


def test_folders_that_are_not_what_they_claim(tmp_path: Path) -> None:
    tensors = random_tensors(QWEN)

    def refused(change: dict[str, Any], message: str) -> None:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        held = {key: value for key, value in (tensors | change).items() if value is not None}
        write_folder(folder, QWEN, held)
        with pytest.raises(CheckpointError, match=message):
            FolderSource(folder)

    refused({"lm_head.weight": None}, r"holds no tensor lm_head\.weight")
    refused({"model.norm.weight": torch.ones(5)}, r"model\.norm\.weight is \[5\], .* says \[24\]")
    refused({"model.layers.0.self_attn.o_proj.bias": torch.ones(24)}, "is no tensor of a qwen2")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        FolderSource(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps(QWEN.to_hf_config()))
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors"):
        FolderSource(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        FolderSource(tmp_path)


def test_a_hub_id_without_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="owner/model: no such folder, and not to be had"):
        FolderSource("owner/model")


class Decoder(nn.Module):
    """As much of a Megatron model as `load_weights` looks at."""

    def __init__(self, layers: int, extra: dict[str, Tensor]) -> None:
        super().__init__()
        self.config = type("Config", (), {"num_layers": layers})()
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList()
        for name, value in extra.items():
            self.decoder.register_parameter(name, nn.Parameter(value))


def test_parameters_that_cannot_be_filled_are_refused() -> None:
    source = RandomSource(QWEN, 0)
    with pytest.raises(CheckpointError, match=r"decoder\.projector has no counterpart"):
        load_weights([Decoder(4, {"projector": torch.ones(2)})], source)
    with pytest.raises(CheckpointError, match="model has 5 layers, the weights have 4"):
        load_weights([Decoder(5, {})], source)
    with pytest.raises(CheckpointError, match="holds no Megatron-Core GPTModel"):
        load_weights([nn.Linear(2, 2)], source)
    with pytest.raises(LayoutError, match="tensor=3 does not divide 4 key/value groups"):
        load_weights([Decoder(4, {})], source, 0, 3)
