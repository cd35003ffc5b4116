"""The fingerprint of weights: every tensor counts, how they are filed does not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ekd_nemo.errors import CheckpointError
from ekd_nemo.sources.weights_identity import weights_fingerprint

Tensors = dict[str, Any]


def tensors() -> Tensors:
    rng = np.random.default_rng(0)
    return {f"layer.{n}": rng.normal(size=(40, 50)).astype(np.float32) for n in range(5)}


def model(folder: Path, parts: list[Tensors], config: dict[str, Any] | None = None) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config or {"hidden_size": 50}))
    for number, part in enumerate(parts):
        save_file(part, folder / f"model-{number}.safetensors", metadata={"part": str(number)})
    return weights_fingerprint(folder)


def test_files_and_metadata_do_not_count(tmp_path: Path) -> None:
    whole = tensors()
    halves = [
        {k: v for k, v in whole.items() if (k < "layer.2") == first} for first in (True, False)
    ]
    one = model(tmp_path / "one", [whole])
    assert one == model(tmp_path / "two", halves)
    assert one == model(
        tmp_path / "renamed", [whole], {"hidden_size": 50, "_name_or_path": "x", "dtype": "float32"}
    )
    assert len(one) == 32


@pytest.mark.parametrize("name", tensors())
def test_training_any_one_tensor_changes_it(tmp_path: Path, name: str) -> None:
    changed = tensors()
    changed[name] = changed[name] * np.float32(1 + 1e-6)
    assert model(tmp_path / "one", [tensors()]) != model(tmp_path / "two", [changed])


def test_config_shape_and_type_count(tmp_path: Path) -> None:
    plain = model(tmp_path / "plain", [tensors()])
    assert plain != model(tmp_path / "config", [tensors()], {"hidden_size": 51})
    flat = {name: value.reshape(-1) for name, value in tensors().items()}
    assert plain != model(tmp_path / "flat", [flat])


def test_what_holds_no_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no safetensors file"):
        model(tmp_path / "empty", [])
    with pytest.raises(CheckpointError, match=r"cannot be told.*config\.json"):
        weights_fingerprint(tmp_path)
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be told"):
        weights_fingerprint(tmp_path / "empty")
