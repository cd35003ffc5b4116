"""A small recipe with the files that it needs, in a folder with an awkward name."""

import json
from pathlib import Path

import pytest

from ekd_nemo.config.resolve import ResolvedRecipe, resolve_recipe

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
RECIPE = """\
name: tiny
method: response
teacher: {path: models/the teacher}
student:
  init: {source: teacher_layers, keep_layers: [0, 3]}
  precision: fp32
data:
  path: data/it's "odd"
  build: {sources: [{kind: python-docs}], tokenizer: models/the teacher, sequence_length: 64}
objective: {alpha: 0.5, response: {}}
optimizer: {lr: 1e-3}
train: {steps: 4, global_batch_size: 4}
energy: {meter: estimate}
"""


def write_tokenizer(folder: Path, tokens: list[str]) -> None:
    """A tokenizer file in which each token's id is its place."""
    vocab = {token: number for number, token in enumerate(tokens)}
    text = json.dumps({"model": {"type": "BPE", "vocab": vocab}, "added_tokens": []})
    (folder / "tokenizer.json").write_text(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a folder; $(touch nothing) 'quoted'"
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "tiny.yaml").write_text(RECIPE)
    teacher = folder / "models" / "the teacher"
    teacher.mkdir(parents=True)
    (teacher / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(teacher, ["<end>", "a", "b"])
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tiny(here: Path) -> ResolvedRecipe:
    return resolve_recipe("tiny")
