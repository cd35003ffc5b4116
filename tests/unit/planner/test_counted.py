"""Planned against counted bytes, and the table that is written of them."""

from pathlib import Path

import pytest

from tests.distributed.memory_cases import CASES, PARTS, misses, planned, row
from tests.unit.planner.counted import COUNTED_MB

HEAD = [
    "| case | student | teacher | gradients | optimiser | activations | loss | outputs | sum | off |",
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
]


def counts(key: tuple[str, str]) -> dict[str, int]:
    sizes = [int(each * 1e6) for each in COUNTED_MB[key]]
    return dict(zip(PARTS.values(), sizes, strict=True))


@pytest.mark.parametrize("key", COUNTED_MB, ids=", ".join)
def test_planned_bytes_are_those_counted(key: tuple[str, str]) -> None:
    name, who = key
    assert not misses(name, planned(CASES[name][1], CASES[name][0])[who], counts(key))


def test_the_written_table_is_the_computed_one() -> None:
    rows = [
        row(f"{name}: {who}", planned(CASES[name][1], CASES[name][0])[who], counts((name, who)))
        for name, who in COUNTED_MB
    ]
    text = (Path(__file__).parents[3] / "tools" / "bench" / "RESULTS.md").read_text()
    assert "\n".join([*HEAD, *rows]) + "\n" in text
