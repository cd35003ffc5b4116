"""Entries of ept.json from windows and a power record whose energies are known."""

from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.evals.ept_request import EptMeasured, EptPoint, EptSettings, EptWindow
from ekd_nemo.metrics.ept_entries import entry_of
from ekd_nemo.records.ept import EptEntry, EptModel
from ekd_nemo.records.identity import DeviceIdentity
from ekd_nemo.records.rundir import RunDir
from tests.unit.metrics.test_windows import S, record


def window(start_s: float, end_s: float, read: int = 600, written: int = 400) -> EptWindow:
    return EptWindow(
        start_ns=int(start_s * S),
        end_ns=int(end_s * S),
        input_tokens=read,
        output_tokens=written,
        requests=10,
    )


def entry(folder: Path, repeats: list[EptWindow], **changes: Any) -> EptEntry:
    run = RunDir(folder)
    record(run, "GPU-a", dict.fromkeys(range(101), 100.0), 5.0)
    body: dict[str, Any] = {
        "job": "student",
        "point": EptPoint(mode="fixed", batch_size=4, input_tokens=60, new_tokens=40),
        "engine": "transformers",
        "engine_version": "4",
        "dtype": "bfloat16",
        "uuids": ("GPU-a",),
        "boot_id": "b",
        "prompts_sha256": "p",
        "repeats": tuple(repeats),
        **changes,
    }
    devices = [
        DeviceIdentity(
            uuid="GPU-a",
            name="board",
            node="n",
            device_kind="gpu",
            meter="nvml",
            source="measured",
        )
    ]
    return entry_of(
        run,
        EptMeasured(**body),
        role="student",
        model=EptModel(path="m"),
        prompts="p.txt",
        settings=EptSettings(),
        request_hash="h",
        devices=devices,
    )


def test_energies_per_token_and_request_are_those_of_the_windows(tmp_path: Path) -> None:
    # 100 W: 1000 J and 1200 J over 1000 tokens and 10 requests each
    found = entry(tmp_path, [window(10, 20), window(20, 32)])
    assert found.energy_j == pytest.approx(2200)
    assert found.per_token_j == pytest.approx(1.1)
    assert found.per_input_token_j == pytest.approx(2200 / 1200)
    assert found.per_output_token_j == pytest.approx(2200 / 800)
    assert found.settings["J_per_request"] == pytest.approx(110)
    # mean 1.1, spread 0.1 / sqrt(2) * sqrt(2): half width of two repeats is 12.706 * 0.1
    assert found.settings["EPT_total_J_per_tok_low"] == pytest.approx(1.1 - 12.706 * 0.1)
    assert found.settings["EPT_total_J_per_tok_high"] == pytest.approx(1.1 + 12.706 * 0.1)
    assert (found.source, found.meter, found.uncertainty_pct) == ("measured", "nvml", 5.0)
    assert [(d.uuid, d.name, d.node) for d in found.devices] == [("GPU-a", "board", "n")]
    assert "few_repeats" in found.flags


def test_prefill_and_decode_are_energies_of_their_own(tmp_path: Path) -> None:
    parts = {"prefill": window(40, 46, 3000, 50), "decode": window(50, 60, 0, 200)}
    found = entry(tmp_path, [window(10, 20)], **parts)
    assert found.prefill is not None and found.decode is not None
    assert (found.prefill.energy_j, found.prefill.tokens) == (pytest.approx(600), 3000)
    assert (found.decode.energy_j, found.decode.tokens) == (pytest.approx(1000), 200)


def test_a_part_below_five_seconds_or_without_samples_gives_no_figure(tmp_path: Path) -> None:
    parts = {"prefill": window(40, 44), "decode": window(500, 510)}
    found = entry(tmp_path, [window(10, 20)], **parts)
    assert (found.prefill, found.decode) == (None, None)
    assert {"prefill_below_5_s", "decode_unmeasured"} <= set(found.flags)


def test_a_repeat_without_samples_is_missing_and_not_zero(tmp_path: Path) -> None:
    found = entry(tmp_path, [window(10, 20), window(500, 510)])
    assert [repeat.energy_j for repeat in found.repeats] == [pytest.approx(1000), None]
    assert found.repeats[1].reason == "no power samples or counters in that time"
    assert found.per_token_j == pytest.approx(1.0), "over the repeat that was measured"
    none = entry(tmp_path / "b", [window(500, 510)])
    assert (none.energy_j, none.per_token_j) == (None, None)
    assert none.reason


def test_short_work_is_refused(tmp_path: Path) -> None:
    found = entry(tmp_path, [window(10, 12), window(12, 14)])
    assert found.energy_j == pytest.approx(400)
    assert found.per_token_j is None
    assert "5 s needed" in (found.reason or "")
