"""Export from distributed checkpoints: tensors, files, and what is refused.

The checkpoints are written by torch with the keys and shapes that Megatron gives them.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor

from ekd_nemo.config.architecture import CHECKPOINT_ASSETS, Architecture, read_architecture
from ekd_nemo.errors import CheckpointError
from ekd_nemo.models.convert import export_checkpoint, hf_tensors, import_checkpoint
from ekd_nemo.models.convert_checkpoint import CheckpointReader
from ekd_nemo.models.convert_folder import WeightsWriter, write_assets
from ekd_nemo.models.convert_source import CheckpointSource, open_source
from ekd_nemo.models.weights import FolderSource, tensor_shapes
from ekd_nemo.models.weights.parts import Rank, hf_layer_prefix, layer_parts, top_parts

ARCH = Architecture(
    family="qwen2",
    num_layers=3,
    hidden_size=12,
    ffn_size=10,
    num_heads=4,
    num_kv_groups=2,
    head_dim=3,
    vocab_size=21,
    rope_theta=1e6,
    rope_scaling=None,
    norm_eps=1e-6,
    tied_embeddings=False,
    qkv_bias=True,
    max_positions=64,
    initializer_range=0.02,
)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with weights at random and as much of a tokenizer as is copied."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = ARCH.to_hf_config() | {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    generator = torch.Generator().manual_seed(1)
    shapes = tensor_shapes(ARCH).items()
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes}
    save_file(tensors, folder / "model.safetensors")
    return folder


def megatron_state(folder: Path, stacked: bool = True) -> dict[str, Tensor]:
    """The tensors of a checkpoint: layers stacked (or by number), the vocabulary padded."""
    source, state = FolderSource(folder), dict[str, Tensor]()
    for name, part in top_parts(ARCH).items():
        tensor = part.read(source, "", Rank())
        pad = torch.full((11, ARCH.hidden_size), float("nan"))
        state[f"module.{name}"] = torch.cat([tensor, pad]) if tensor.dim() == 2 else tensor
    for name, part in layer_parts(ARCH).items():
        layers = [
            part.read(source, hf_layer_prefix(index), Rank()) for index in range(ARCH.num_layers)
        ]
        if stacked:
            state[f"module.decoder.layers.{name}"] = torch.stack(layers)
        else:
            state |= {f"module.decoder.layers.{i}.{name}": t for i, t in enumerate(layers)}
    return state


def save(state: dict[str, Any], folder: Path) -> Path:
    dcp.save(state, checkpoint_id=folder / "weights", no_dist=True)
    return folder


@pytest.fixture
def checkpoint(model_folder: Path, tmp_path: Path) -> Path:
    extra = {
        "optimizer.state.exp_avg.module.embedding.word_embeddings.weight": torch.ones(3),
        "projectors.0.weight": torch.ones(2, 2),
    }
    return save(megatron_state(model_folder) | extra, tmp_path / "checkpoint")


def assert_same_weights(found: Path, expected: Path) -> None:
    ours, theirs = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("stacked", [True, False])
def test_export_gives_every_tensor_bit_for_bit(
    model_folder: Path, tmp_path: Path, stacked: bool
) -> None:
    folder = save(megatron_state(model_folder, stacked), tmp_path / "checkpoint")
    out = export_checkpoint(
        folder, tmp_path / "out", architecture=ARCH, tokenizer_from=model_folder
    )
    assert_same_weights(out, model_folder)
    assert read_architecture(out) == ARCH


def test_the_files_of_an_export(checkpoint: Path, model_folder: Path, tmp_path: Path) -> None:
    out = export_checkpoint(checkpoint / "weights", tmp_path / "out", tokenizer_from=model_folder)
    assert sorted(file.name for file in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((out / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert config["torch_dtype"] == "float32"


def test_the_depth_is_the_checkpoints(checkpoint: Path, model_folder: Path, tmp_path: Path) -> None:
    deeper = tmp_path / "deeper"
    write_assets(deeper, ARCH.with_layers(30), model_folder)
    out = export_checkpoint(checkpoint, tmp_path / "out", tokenizer_from=deeper)
    assert read_architecture(out).num_layers == 3
    with pytest.raises(CheckpointError, match="holds 3 layers, the decoder has 30"):
        export_checkpoint(
            checkpoint,
            tmp_path / "again",
            architecture=ARCH.with_layers(30),
            tokenizer_from=model_folder,
        )


def test_a_checkpoint_that_says_what_it_is_needs_no_other_folder(
    checkpoint: Path, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"does not say which decoder .*--like FOLDER"):
        export_checkpoint(checkpoint, tmp_path / "out")
    write_assets(checkpoint / CHECKPOINT_ASSETS, ARCH, model_folder)
    assert_same_weights(export_checkpoint(checkpoint, tmp_path / "out"), model_folder)


def test_another_dtype(checkpoint: Path, model_folder: Path, tmp_path: Path) -> None:
    out = export_checkpoint(
        checkpoint, tmp_path / "out", tokenizer_from=model_folder, dtype="bfloat16"
    )
    found, expected = (load_file(f / "model.safetensors") for f in (out, model_folder))
    assert all(torch.equal(found[name], value.bfloat16()) for name, value in expected.items())
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_shards_and_their_index(model_folder: Path, tmp_path: Path) -> None:
    expected = load_file(model_folder / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    writer = WeightsWriter(out, shard_bytes=2000)
    for name, tensor in expected.items():
        writer.add(name, tensor)
    writer.close()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert len(set(index["weight_map"].values())) > 2
    (out / "config.json").write_text((model_folder / "config.json").read_text())
    source = FolderSource(out)
    assert all(torch.equal(source.get(name), tensor) for name, tensor in expected.items())
    assert all(file.stat().st_size < 4000 for file in out.glob("*.safetensors"))


def test_an_existing_output_is_refused_and_left_alone(
    checkpoint: Path, model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="exists, nothing is overwritten"):
        export_checkpoint(checkpoint, out, tokenizer_from=model_folder)
    with pytest.raises(CheckpointError, match="exists, nothing is overwritten"):
        import_checkpoint(model_folder, out)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_missing_folders(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        export_checkpoint(checkpoint, tmp_path / "out", tokenizer_from=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        import_checkpoint(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_checkpoint(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a Megatron distributed checkpoint"):
        export_checkpoint(model_folder, tmp_path / "out")


def test_a_checkpoint_without_a_gpt_model(tmp_path: Path) -> None:
    folder = save({"weight": torch.ones(2)}, tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="holds 0 GPT models, accepted is one"):
        CheckpointReader(folder)


@pytest.mark.parametrize("content", [b"", b"torn", pickle.dumps([1, 2])])
def test_a_torn_table_of_contents(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "weights" / ".metadata").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a checkpoint's table of contents"):
        CheckpointReader(checkpoint)


class Planted:
    """A pickle that would write a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_a_planted_pickle_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    (checkpoint / "weights" / ".metadata").write_bytes(pickle.dumps(Planted(planted)))
    with pytest.raises(CheckpointError, match="is not part of the format"):
        CheckpointReader(checkpoint)
    assert not planted.exists()


def test_a_lost_file_leaves_nothing_half_made(
    checkpoint: Path, model_folder: Path, tmp_path: Path
) -> None:
    for file in (checkpoint / "weights").glob("*.distcp"):
        file.unlink()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="cannot be read"):
        export_checkpoint(checkpoint, tmp_path / "out", tokenizer_from=model_folder)
    assert sorted(tmp_path.iterdir()) == before


def test_another_decoders_shapes_are_refused(
    checkpoint: Path, model_folder: Path, tmp_path: Path
) -> None:
    wider = Architecture(**(vars(ARCH) | {"ffn_size": 11}))
    with pytest.raises(CheckpointError, match=r"gate_proj\.weight is \[10, 12\]"):
        export_checkpoint(
            checkpoint, tmp_path / "out", architecture=wider, tokenizer_from=model_folder
        )
    llama = Architecture(**(vars(ARCH) | {"tied_embeddings": True}))
    names = {name for name, _ in hf_tensors(CheckpointReader(checkpoint), llama)}
    assert "lm_head.weight" not in names
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer_is_refused(
    checkpoint: Path, model_folder: Path, tmp_path: Path
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model_folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer"):
        export_checkpoint(checkpoint, tmp_path / "out", tokenizer_from=model_folder)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_a_source_of_tensors(
    checkpoint: Path, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        open_source(checkpoint)
    write_assets(checkpoint / CHECKPOINT_ASSETS, ARCH, model_folder)
    source = open_source(checkpoint)
    assert isinstance(source, CheckpointSource)
    assert source.architecture == ARCH
    for name, tensor in load_file(model_folder / "model.safetensors").items():
        assert torch.equal(source.get(name), tensor)
        assert torch.equal(source.get_rows(name, 1, 3), tensor[1:3])
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(source.get_columns(name, 1, 3), source.get(name)[:, 1:3])
    with pytest.raises(CheckpointError, match="holds no tensor other"):
        source.get("other")
    write_assets(checkpoint / CHECKPOINT_ASSETS, ARCH.with_layers(4), model_folder)
    with pytest.raises(CheckpointError, match="holds 3 layers, its config.json says 4"):
        open_source(checkpoint)
    assert isinstance(open_source(model_folder), FolderSource)


def test_config_and_tokenizer_from_two_folders(
    checkpoint: Path, model_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(ARCH.to_hf_config()))
    with pytest.raises(CheckpointError, match="bare: holds no tokenizer"):
        export_checkpoint(checkpoint, tmp_path / "out", like=bare)
    out = export_checkpoint(checkpoint, tmp_path / "out", like=bare, tokenizer_from=model_folder)
    assert (out / "tokenizer.json").is_file()
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 2
