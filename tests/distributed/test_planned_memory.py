"""The planner's bytes against bytes counted on the smoke pair, for each placement and layout.

Counted is what a step of the product really holds at its fullest moment on gloo ranks: models, gradient buffers, Adam's
state, activations, losses and the teacher's outputs, each storage once. `--log-cli-level=INFO` shows the table.
"""

import logging
from pathlib import Path

import pytest

from ekd_nemo.config.layer_map import default_pairs
from ekd_nemo.planner.memory import Memory
from tests.distributed.memory_cases import CASES, QUICK, misses, planned, recipe, row
from tests.distributed.memory_ranks import Counts, counted, split_counted
from tests.distributed.ranks import run_ranks
from tests.forkserver import forkserver


def compare(name: str, ranks: list[Counts], plan: Memory) -> list[str]:
    """What is off by more than it may be, on the rank that holds most; logs the row."""
    fullest = max(ranks, key=lambda counts: sum(counts.values()))
    logging.getLogger(__name__).info("COUNT %r: %r,", name, fullest)
    logging.getLogger(__name__).info("%s", row(name, plan, fullest))
    return misses(name, plan, fullest)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in CASES],
)
def test_planned_bytes_are_those_counted(name: str, tmp_path: Path) -> None:
    world, case = CASES[name]
    teacher, plan = recipe(case).teacher, planned(case, world)
    assert teacher is not None
    split = teacher.split.ranks if teacher.split is not None else 0
    count = split_counted if split else counted
    by_rank: list[Counts] = run_ranks(
        count, world, tmp_path, case, tmp_path / "meet", timeout_s=500, context=forkserver()
    )
    wrong = compare(name, by_rank[: world - split], plan["student"])
    if split:
        wrong += compare(f"{name}: teacher", by_rank[world - split :], plan["teacher"])
    assert not wrong, "\n".join(wrong)


def test_the_default_pairs_are_those_of_training() -> None:
    from ekd_nemo.config.objective import FeatureLoss
    from ekd_nemo.models.terms import feature_pairs

    for layers in (3, 8, 30):
        pairs = feature_pairs(FeatureLoss(), 30, layers)
        assert default_pairs(30, layers) == tuple((pair.teacher, pair.student) for pair in pairs)
