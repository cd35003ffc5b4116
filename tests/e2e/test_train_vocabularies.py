"""Teacher and student of one tokenizer, stored with unlike numbers of rows: the rows beyond it change nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.e2e.training import (
    STUDENT,
    TEACHER,
    Pair,
    curve,
    make_run,
    train,
    write_model,
    write_shards,
)

pytestmark = pytest.mark.timeout(600)
MORE = 700  # 768 rows with Megatron's padding, 500 has 512: the heads are cut at other ids
# fp32; other orders of summation over tensor ranks.
TOLERANCE = 1e-5
TERMS = ("loss", "ce", "response_forward_kl", "grad_norm", "val_ce", "val_kl_to_teacher")


def lengthened(source: Path, target: Path) -> Path:
    """The model with random rows beyond its vocabulary, large enough to take all probability."""
    tensors = load_file(source / "model.safetensors")
    name = "model.embed_tokens.weight"
    draw = torch.Generator().manual_seed(2)
    rows = 10 * torch.randn(MORE - len(tensors[name]), tensors[name].shape[1], generator=draw)
    target.mkdir()
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"vocab_size": MORE}))
    save_file(
        tensors | {name: torch.cat([tensors[name], rows])},
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    write_model(place / "teacher", TEACHER, seed=11)
    write_model(place / "student", replace(STUDENT, tied_embeddings=True), seed=7)
    for name in ("teacher", "student"):
        lengthened(place / name, place / f"long-{name}")
    write_shards(place / "data")
    return place


def curves(run: Path, folder: Path, names: tuple[str, str], world: int) -> dict[str, Any]:
    """Every term's values, step by step."""
    pair = Pair(folder / names[0], folder / names[1], folder / "data")
    start = {"source": "checkpoint", "path": str(pair.student)}
    parallel = {"tensor": world, "pipeline": 1}
    found = train(make_run(run, pair, student__init=start, student__parallel=parallel), world)
    return {term: list(curve(found, term).values()) for term in TERMS}


def test_rows_beyond_the_tokenizer_change_nothing(folder: Path, tmp_path: Path) -> None:
    plain = curves(tmp_path / "plain", folder, ("teacher", "student"), 1)
    assert all(len(values) >= 2 for values in plain.values())
    cases = {
        "teacher": (("long-teacher", "student"), 2),
        "student": (("teacher", "long-student"), 1),
    }
    for which, (names, world) in cases.items():
        found = curves(tmp_path / which, folder, names, world)
        for term, values in found.items():
            np.testing.assert_allclose(
                values, plain[term], rtol=TOLERANCE, err_msg=f"long {which}: {term}"
            )
