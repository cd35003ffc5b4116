"""The benchmark's table: the best batch is named, and a refused figure says why."""

from typing import Any

from ekd_nemo.metrics.ept_table import HEAD, ept_rows
from ekd_nemo.records.ept import (
    EptDevice,
    EptEngine,
    EptEntry,
    EptModel,
    EptPart,
    EptRepeat,
    EptWorkload,
    ept_entry,
)


def entry(batch_size: int, energy_j: float, duration_s: float = 6.0, **changes: Any) -> EptEntry:
    repeat = EptRepeat(
        energy_j=energy_j, duration_s=duration_s, input_tokens=60, output_tokens=40, requests=4
    )
    settings: dict[str, Any] = {
        "role": "student",
        "model": EptModel(path="m"),
        "engine": EptEngine(name="transformers"),
        "devices": (EptDevice(uuid="GPU-1"),),
        "source": "measured",
        "settings": {"J_per_request": energy_j / 4},
        **changes,
    }
    workload = EptWorkload(prompts="p", mode="fixed", input_tokens=15, new_tokens=10)
    return ept_entry(repeats=[repeat], workload=workload, batch_size=batch_size, **settings)


def column(rows: list[list[str]], name: str) -> list[str]:
    return [row[HEAD.index(name)] for row in rows[1:]]


def test_the_batch_with_the_least_energy_per_token_is_the_best_of_each_model() -> None:
    rows = ept_rows([entry(1, 200.0), entry(4, 100.0), entry(1, 300.0, role="teacher")])
    assert ["best batch" in row[-1] for row in rows[1:]] == [False, True, True]
    assert column(rows, "J/token") == ["2", "1", "3"]
    assert column(rows, "J/request") == ["50", "25", "75"]
    assert column(rows, "tokens/s") == ["17", "17", "17"]


def test_below_five_seconds_no_figure_per_token_is_shown_and_the_reason_is() -> None:
    rows = ept_rows([entry(1, 200.0, duration_s=4.9)])
    for name in ("J/token", "J/token out", "J/request", "95 % interval"):
        assert column(rows, name) == ["n/a"]
    assert rows[1][-1] == "only 4.9 s of measured work, 5 s needed"


def test_parts_are_shown_in_millijoules_a_token() -> None:
    rows = ept_rows([entry(1, 200.0, prefill=EptPart(energy_j=30.0, duration_s=6, tokens=60))])
    assert column(rows, "prefill mJ/token") == ["500"]
    assert column(rows, "decode mJ/token") == ["n/a"]
