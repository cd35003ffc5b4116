"""Adapters trained, saved and resumed by the real worker: the base stays, the curve is every layout's."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ekd_nemo.models.convert_checkpoint import CheckpointReader, read_metadata
from ekd_nemo.models.weights import FolderSource
from ekd_nemo.models.weights.parts import Rank, hf_layer_prefix, layer_parts, top_parts
from tests.e2e.test_train_families import COMBINED, FOUR_LAYERS
from tests.e2e.training import Pair, curve, lines, make_pair, make_run, started, train, write_model

pytestmark = pytest.mark.timeout(600)

# As in test_train_layouts: fp32, other orders of summation, and what AdamW makes of them.
TOLERANCE = 1e-5
LORA = {"rank": 4, "alpha": 8}
SHORT = {"train__steps": 4, "train__val_interval": 4, "train__checkpoint_interval": 2}
BOTH = {"tensor": 2, "pipeline": 2, "sequence_parallel": True}
slow = pytest.mark.slow
Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A student with weights of its own, and embeddings tied to the head."""
    made = make_pair(tmp_path_factory.mktemp("pair"))
    folder = made.student.parent / "start"
    write_model(folder, FOUR_LAYERS, seed=23)
    return Pair(made.teacher, folder, made.data)


def run_of(folder: Path, pair: Pair, method: str = "response", **changes: Any) -> Path:
    start = {"source": "checkpoint", "path": str(pair.student)}
    given = {"student__lora": LORA, "student__init": start} | SHORT
    if method == "combined":
        given["objective"] = COMBINED
    return make_run(folder, pair, method, **given | changes)


@pytest.fixture(scope="module")
def one_rank(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Lines]:
    run = run_of(tmp_path_factory.mktemp("one") / "run", pair)
    return run, train(run)


def assert_same_curves(found: Lines, expected: Lines) -> None:
    keys = {key for line in expected for key in line if isinstance(line[key], float)}
    keys = {key for key in keys if not key.endswith(("_s", "_j")) and "per_s" not in key}
    assert {"loss", "ce", "grad_norm", "val_ce"} <= keys
    for key in keys - {"flops_per_s", "mfu"}:
        assert curve(found, key) == pytest.approx(curve(expected, key), rel=TOLERANCE), key


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        pytest.param(2, {"student__parallel": {"tensor": 2, "sequence_parallel": True}}, id="tp2"),
        pytest.param(2, {"student__parallel": {"pipeline": 2}}, id="pp2", marks=slow),
        pytest.param(2, {}, id="dp2", marks=slow),
        pytest.param(2, {"student__parallel": {"tensor": 2}}, id="tp2-whole", marks=slow),
        pytest.param(1, {"student__recompute": "full"}, id="full", marks=slow),
        pytest.param(
            4, {"student__parallel": BOTH, "student__recompute": "full"}, id="both", marks=slow
        ),
        pytest.param(
            2,
            {"student__parallel": {"pipeline": 2, "virtual_pipeline": 2}},
            id="interleaved",
            marks=slow,
        ),
    ],
)
def test_every_layout_gives_the_curve_of_one_rank(
    pair: Pair, one_rank: tuple[Path, Lines], tmp_path: Path, world: int, changes: dict[str, Any]
) -> None:
    assert_same_curves(train(run_of(tmp_path / "run", pair, **changes), world), one_rank[1])


@slow
@pytest.mark.parametrize("method", ["sft", "combined"])
def test_other_methods(pair: Pair, tmp_path: Path, method: str) -> None:
    """With projectors, which are trained beside the adapters, and two passes of the relation."""
    one = train(run_of(tmp_path / "one", pair, method))
    losses = list(curve(one, "loss").values())
    assert losses[-1] != losses[0]
    cut = {"tensor": 2, "sequence_parallel": True}
    two = train(run_of(tmp_path / "two", pair, method, student__parallel=cut), 2)
    assert_same_curves(two, one)


def test_the_first_loss_is_that_of_full_training(
    pair: Pair, one_rank: tuple[Path, Lines], tmp_path: Path
) -> None:
    full = train(run_of(tmp_path / "run", pair, student__lora=None, train__steps=1))
    for key in ("loss", "ce", "response_forward_kl"):
        assert curve(full, key)[1] == curve(one_rank[1], key)[1], key
    assert curve(full, "grad_norm")[1] > curve(one_rank[1], "grad_norm")[1]


def test_only_adapters_move(pair: Pair, one_rank: tuple[Path, Lines]) -> None:
    reader = CheckpointReader(one_rank[0] / "checkpoints" / "step_0000004")
    start = FolderSource(pair.student)
    for name, part in top_parts(FOUR_LAYERS).items():
        kept = reader.read_bare(name)
        begun = part.read(start, "", Rank())
        assert torch.equal(kept[: len(begun)], begun), name
    for layer in range(FOUR_LAYERS.num_layers):
        for name, part in layer_parts(FOUR_LAYERS).items():
            begun = part.read(start, hf_layer_prefix(layer), Rank())
            assert torch.equal(reader.read_bare(name, layer), begun), name
            adapter = reader.read_adapter(name, layer)
            assert (adapter is None) == ("norm" in name)
            if adapter is not None:
                assert float(adapter[1].abs().max()) > 0, name


def test_a_killed_run_goes_on_bit_for_bit(
    pair: Pair, one_rank: tuple[Path, Lines], tmp_path: Path
) -> None:
    run = run_of(tmp_path / "run", pair)
    with started(run) as job:
        job.until(lambda: len(curve(lines(run), "loss")) >= 3)
        job.kill()
    states = optimizer_states(run / "checkpoints" / "step_0000002")
    assert len(states) >= 2 * 2 * 4  # both moments of A and B of each matrix, layers stacked
    assert all(".adapter." in name for name in states)
    after = train(run, attempt=2)
    second = [line["step"] for line in after if line["attempt"] == 2]
    assert min(second) == 3
    for key in ("loss", "grad_norm", "lr", "val_ce", "val_kl_to_teacher"):
        assert curve(after, key) == curve(one_rank[1], key), key


def optimizer_states(checkpoint: Path) -> list[str]:
    """Names of the optimiser's tensors for single parameters."""
    metadata = read_metadata(checkpoint / "weights" / ".metadata")
    names = map(str, metadata.state_dict_metadata)
    return [name for name in names if "exp_avg" in name]
