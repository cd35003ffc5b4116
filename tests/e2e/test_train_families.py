"""Feature, relation and both with response through NeMo: layouts, resumption, export, the log."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ekd_nemo.models.convert import export_checkpoint
from tests.e2e.training import (
    STUDENT,
    Pair,
    curve,
    lines,
    make_pair,
    make_run,
    started,
    train,
    write_config,
)
from tests.unit.launch.conftest import write_tokenizer

pytestmark = pytest.mark.timeout(600)

# fp32 in other orders of summation, and what AdamW makes of them over the steps.
TOLERANCE = 1e-5
FOUR_LAYERS = replace(STUDENT, num_layers=4)
COMBINED: dict[str, Any] = {
    "w_ce": 0.3,
    "response": {"kind": "jsd", "weight": 0.5},
    "feature": {
        "pairs": [
            {"teacher_layer": 1, "student_layer": 0},
            {"teacher_layer": 3, "student_layer": 3, "weight": 0.5},
        ],
        "token_ratio": 0.5,
        "weight": 0.3,
    },
    "relation": {"weight_distance": 1.0, "weight_angle": 0.5, "weight_gram": 0.25, "weight": 2.0},
}
TERMS = {
    "ce",
    "response_jsd",
    "feature_mse",
    "feature_mse_1_0",
    "feature_mse_3_3",
    "relation_distance",
    "relation_angle",
    "relation_cosine_gram",
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2-sequence-pp2-full": (
        4,
        {
            "student__parallel": {"tensor": 2, "pipeline": 2, "sequence_parallel": True},
            "student__recompute": "full",
        },
    ),
    "interleaved": (2, {"student__parallel": {"pipeline": 2, "virtual_pipeline": 2}}),
    "dp2": (2, {}),
}


def run_of(folder: Path, pair: Pair, **changes: Any) -> Path:
    short = {"train__steps": 4, "train__val_interval": 4, "train__checkpoint_interval": 2}
    return make_run(folder, pair, "combined", objective=COMBINED, **short | changes)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A student of four layers, so that two stages can hold two chunks each."""
    folder = tmp_path_factory.mktemp("pair")
    found = make_pair(folder)
    write_config(folder / "student-4", FOUR_LAYERS)
    write_tokenizer(folder / "student-4", ["a"])
    return replace(found, student=folder / "student-4")


@pytest.fixture(scope="module")
def one_rank(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_of(tmp_path_factory.mktemp("one") / "run", pair)
    train(run)
    return run


def curves(run: Path) -> dict[str, dict[int, float]]:
    keys = (*TERMS, "loss", "grad_norm", "val_ce", "val_kl_to_teacher")
    return {key: curve(lines(run), key) for key in keys}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_gives_the_curve_of_one_rank(
    layout: str, pair: Pair, one_rank: Path, tmp_path: Path
) -> None:
    world, changes = LAYOUTS[layout]
    run = run_of(tmp_path / "run", pair, **changes)
    train(run, world)
    expected = curves(one_rank)
    for key, found in curves(run).items():
        assert found == pytest.approx(expected[key], rel=TOLERANCE), key


def test_projectors_go_on_where_they_were_and_stay_out_of_the_export(
    pair: Pair, one_rank: Path, tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", pair)
    with started(run) as job:
        job.until(lambda: len(curve(lines(run), "loss")) >= 3)
        job.kill()
    train(run, attempt=2)
    assert min(line["step"] for line in lines(run) if line["attempt"] == 2) > 2
    assert curves(run) == curves(one_rank)
    newest = max((run / "checkpoints").iterdir())
    out = export_checkpoint(newest, tmp_path / "hf", like=pair.student)
    with safe_open(out / "model.safetensors", "pt") as tensors:
        names = set(tensors.keys())
    assert "model.layers.3.mlp.up_proj.weight" in names
    assert not [name for name in names if "projector" in name]


def test_log_names_each_term_and_the_rates(one_rank: Path) -> None:
    found = [line for line in lines(one_rank) if "loss" in line]
    assert set(found[0]) >= TERMS
    for line in found:
        weighed = 0.3 * line["ce"] + 0.5 * line["response_jsd"] + 0.3 * line["feature_mse"]
        relations = line["relation_distance"] + 0.5 * line["relation_angle"]
        weighed += 2.0 * (relations + 0.25 * line["relation_cosine_gram"])
        assert line["loss"] == pytest.approx(weighed, rel=1e-6)
        assert line["feature_mse"] == pytest.approx(
            line["feature_mse_1_0"] + 0.5 * line["feature_mse_3_3"], rel=1e-6
        )
        assert line["tokens_per_s"] == pytest.approx(line["tokens"] / line["duration_s"])
        # By hand: 2 FLOP a weight of the layers, three times for the student (and once more for the
        # relation's first pass); heads and attention come on top.
        student = 2 * 4 * (32 * (2 * 32 + 2 * 16) + 3 * 32 * 64)
        teacher = 2 * 4 * (64 * (2 * 64 + 2 * 32) + 3 * 64 * 128)
        assert line["flops"] > line["tokens"] * (4 * student + teacher)
        assert line["flops"] < 2 * line["tokens"] * (4 * student + teacher)
        assert line["mfu"] is None  # no peak is known for a CPU
        assert line["energy_per_token_j"] is None  # no sampler ran beside
