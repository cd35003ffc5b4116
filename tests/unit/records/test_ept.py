"""ept.json: derived keys follow from the repeats, and nothing else is taken."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ekd_nemo.errors import DataError
from ekd_nemo.records.ept import (
    EptDevice,
    EptEngine,
    EptEntry,
    EptFile,
    EptModel,
    EptRepeat,
    EptWorkload,
    ept_entry,
    read_ept,
    write_ept,
)

WORKLOAD = EptWorkload(
    prompts="built-in", prompts_sha256="p", mode="fixed", input_tokens=10, new_tokens=5, requests=4
)


def repeat(energy_j: float | None = 90.0, duration_s: float = 3.0, **changes: Any) -> EptRepeat:
    values = {"energy_j": energy_j, "duration_s": duration_s, "input_tokens": 40}
    values |= {"output_tokens": 20, "requests": 4, **changes}
    return EptRepeat.model_validate(values)


def entry(*repeats: EptRepeat, **changes: Any) -> EptEntry:
    settings: dict[str, Any] = {
        "role": "student",
        "model": EptModel(path="m"),
        "engine": EptEngine(name="transformers"),
        "devices": (EptDevice(uuid="GPU-1"),),
        "batch_size": 4,
        "source": "measured",
        **changes,
    }
    return ept_entry(repeats=repeats, workload=WORKLOAD, **settings)


def test_the_earlier_frameworks_keys_follow_from_the_repeats() -> None:
    body = json.loads(entry(repeat(), repeat(96.0)).model_dump_json(by_alias=True))
    assert (body["E_run_J"], body["T_in"], body["T_out"]) == (186.0, 80, 40)
    assert body["EPT_in_J_per_tok"] == 186 / 80
    assert body["EPT_out_J_per_tok"] == 186 / 40
    assert body["EPT_total_J_per_tok"] == 186 / 120


def test_below_five_seconds_no_energy_per_token_is_told() -> None:
    made = entry(repeat(duration_s=4.9))
    assert made.energy_j == 90.0
    assert (made.per_token_j, made.per_input_token_j, made.per_output_token_j) == (None,) * 3
    assert made.reason is not None and "5 s needed" in made.reason


def test_no_tokens_and_no_energy_are_missing_and_not_zero() -> None:
    silent = entry(repeat(duration_s=6, output_tokens=0))
    assert silent.per_output_token_j is None and silent.per_input_token_j is not None
    unmeasured = entry(repeat(None, 6, reason="no meter"))
    assert unmeasured.energy_j is None and unmeasured.reason == "no meter"
    with pytest.raises(ValidationError, match="reason"):
        repeat(None)


def test_a_file_keeps_one_entry_a_key_and_survives_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ept.json"
    assert read_ept(path) == EptFile()
    file = EptFile().with_entries([entry(repeat(), repeat()), entry(repeat(), batch_size=1)])
    write_ept(path, file.with_entries([entry(repeat(), repeat(), repeat())]))
    stored = read_ept(path)
    assert [(e.batch_size, len(e.repeats)) for e in stored.entries] == [(1, 1), (4, 3)]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("E_run_J", 1.0, "E_run_J"),
        ("EPT_total_J_per_tok", 180_000.0, "EPT_total_J_per_tok"),
        ("workload_hash", "0", "workload_hash"),
        ("batch_size", 0, "batch_size"),
        ("colour", "red", "colour"),
    ],
)
def test_what_does_not_follow_is_refused_by_name(
    tmp_path: Path, key: str, value: object, words: str
) -> None:
    body = json.loads(EptFile(entries=(entry(repeat(), repeat()),)).model_dump_json(by_alias=True))
    body["entries"][0][key] = value
    path = tmp_path / "ept.json"
    path.write_text(json.dumps(body))
    with pytest.raises(DataError, match=words):
        read_ept(path)
