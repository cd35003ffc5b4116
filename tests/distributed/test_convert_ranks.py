"""Checkpoints that Megatron saves from several ranks are exported as one model."""

import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file

from ekd_nemo.models.convert import export_checkpoint
from tests.distributed.gpt_ranks import save_folders
from tests.distributed.ranks import run_ranks


def random_qwen2(folder: Path, tied: bool) -> None:
    """A model whose every tensor is at random, biases and norms too."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    # 150 rows: Megatron pads them to 256, and the padding has to be dropped again.
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        vocab_size=150,
        tie_word_embeddings=tied,
    )
    model = Qwen2ForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")


def test_checkpoints_of_tp_2_and_pp_2_export_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(11)
    folders = [tmp_path / "tied", tmp_path / "untied"]
    for folder in folders:
        random_qwen2(folder, tied=folder.name == "tied")
    run_ranks(save_folders, 2, tmp_path, folders, tmp_path / "saved")
    for folder, layout in itertools.product(folders, ("tp2", "pp2")):
        saved = tmp_path / "saved" / folder.name / layout
        out = export_checkpoint(saved, saved / "hf", tokenizer_from=folder)
        found, expected = (load_file(f / "model.safetensors") for f in (out, folder))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), saved
