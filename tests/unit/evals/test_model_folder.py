"""A model folder is checked before anything is started, and named by its content."""

import json
from pathlib import Path

import pytest

from ekd_nemo.errors import CheckpointError
from ekd_nemo.evals.model_folder import open_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", r"no \*\.safetensors"),
        ("tokenizer.json", "no tokenizer; expected one of tokenizer.json"),
    ],
)
def test_an_incomplete_folder_is_refused(folder: Path, missing: str, told: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(CheckpointError, match=told):
        open_model(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone: no such folder"):
        open_model(tmp_path / "gone")


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        CheckpointError, match=r"names model-00002\.safetensors, which is not there"
    ):
        open_model(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not an index"):
        open_model(folder)


@pytest.mark.parametrize(
    ("file", "weights", "tokenizer"),
    [
        ("config.json", True, False),
        ("model.safetensors", True, False),
        ("tokenizer.json", False, True),
    ],
)
def test_the_hashes_follow_the_content(
    folder: Path, file: str, weights: bool, tokenizer: bool
) -> None:
    before = open_model(folder)
    (folder / "README.md").write_text("does not count")
    assert open_model(folder) == before
    (folder / file).write_text("changed")
    after = open_model(folder)
    assert (after.weights_sha256 != before.weights_sha256) is weights
    assert (after.tokenizer_sha256 != before.tokenizer_sha256) is tokenizer
