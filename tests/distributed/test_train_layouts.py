"""The same training in every layout: tensor, sequence, pipeline, data parallel, any microbatch."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.training import Pair, curve, make_pair, make_run, train

pytestmark = pytest.mark.timeout(600)

# fp32, other orders of summation: single steps differ by some 1e-7; the issue asks for 1e-4, and
# AdamW's first steps, which follow the sign of small gradients, can carry a difference further.
TOLERANCE = 1e-5
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2": (2, {"student__parallel": {"tensor": 2}}),
    "tp2-sequence": (2, {"student__parallel": {"tensor": 2, "sequence_parallel": True}}),
    "pp2": (2, {"student__parallel": {"pipeline": 2}}),
    "dp2": (2, {}),
    "microbatch2": (1, {"train__micro_batch_size": 2}),
    "tp2-pp2": (4, {"student__parallel": {"tensor": 2, "pipeline": 2}}),
}
KEYS = ("loss", "ce", "response_forward_kl", "grad_norm", "val_ce", "val_kl_to_teacher")
SHORT = {"train__steps": 4, "train__val_interval": 4, "train__checkpoint_interval": 10}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def one_rank(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return train(make_run(tmp_path_factory.mktemp("one") / "run", pair, **SHORT))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_gives_the_curve_of_one_rank(
    layout: str, pair: Pair, one_rank: list[dict[str, Any]], tmp_path: Path
) -> None:
    world, changes = LAYOUTS[layout]
    found = train(make_run(tmp_path / "run", pair, **SHORT, **changes), world)
    for key in KEYS:
        expected = curve(one_rank, key)
        assert expected, key
        assert curve(found, key) == pytest.approx(expected, rel=TOLERANCE), key
    for key in ("tokens", "tokens_valid", "val_tokens", "tokens_total"):
        assert curve(found, key) == curve(one_rank, key)


def test_untied_pair_over_stages(tmp_path: Path) -> None:
    """First and last stage share nothing then."""
    pair = make_pair(tmp_path / "pair", tied=False)
    one = train(make_run(tmp_path / "one", pair, **SHORT))
    two = train(make_run(tmp_path / "two", pair, **SHORT, student__parallel={"pipeline": 2}), 2)
    for key in KEYS:
        assert curve(two, key) == pytest.approx(curve(one, key), rel=TOLERANCE), key
