"""Entries of ept.json for tests."""

from typing import Any

from ekd_nemo.records.ept import (
    EptDevice,
    EptEngine,
    EptEntry,
    EptFile,
    EptModel,
    EptPart,
    EptRepeat,
    EptWorkload,
    ept_entry,
    write_ept,
)
from ekd_nemo.records.rundir import RunDir


def workload(mode: Any = "fixed", input_tokens: int = 100, new_tokens: int = 50) -> EptWorkload:
    return EptWorkload(
        prompts="built-in", prompts_sha256="p", mode=mode, input_tokens=input_tokens, new_tokens=new_tokens,
        requests=10,
    )  # fmt: skip


def entry(
    role: str, per_token_j: float, *, batch: int = 8, asked: EptWorkload | None = None, repeats: int = 3,
    duration_s: float = 10.0, uuid: str = "GPU-0", **changes: Any,
) -> EptEntry:  # fmt: skip
    """One whose EPT_total is `per_token_j` in the mean; repeats lie 1 % around it."""
    asked = asked or workload()
    assert asked.input_tokens and asked.new_tokens
    tokens_in, tokens_out = 10 * asked.input_tokens, 10 * asked.new_tokens
    spread = [
        0.01 * (2 * k / max(1, repeats - 1) - 1) if repeats > 1 else 0 for k in range(repeats)
    ]
    values: dict[str, Any] = {
        "role": role,
        "model": EptModel(path=role),
        "engine": EptEngine(name="transformers", version="4.57", dtype="bf16"),
        "devices": (EptDevice(uuid=uuid),),
        "batch_size": batch,
        "source": "measured",
        "uncertainty_pct": 5.0,
        "prefill": EptPart(energy_j=40.0, duration_s=6.0, tokens=tokens_in),
        "decode": EptPart(energy_j=60.0, duration_s=6.0, tokens=tokens_out),
        **changes,
    }
    measured = [
        EptRepeat(
            energy_j=per_token_j * (1 + off) * (tokens_in + tokens_out), duration_s=duration_s, input_tokens=tokens_in,
            output_tokens=tokens_out, requests=10, coverage=1.0,
        )
        for off in spread
    ]  # fmt: skip
    return ept_entry(repeats=measured, workload=asked, **values)


def benchmark(run: RunDir, *entries: EptEntry) -> None:
    write_ept(run.ept_json, EptFile().with_entries(entries))
