"""The energy-per-token benchmark as rows of text: one a model, workload and batch size."""

from collections.abc import Sequence

from ekd_nemo.records.ept import EptEntry, EptPart

HEAD = (
    "model",
    "workload",
    "batch",
    "J/token",
    "95 % interval",
    "J/token out",
    "J/request",
    "prefill mJ/token",
    "decode mJ/token",
    "tokens/s",
    "source",
    "",
)


def ept_rows(entries: Sequence[EptEntry]) -> list[list[str]]:
    """A head and one row an entry; each model's best batch of a workload is named, and why a figure is missing."""
    best = _best(entries)
    return [list(HEAD), *(_row(entry, best) for entry in entries)]


def _best(entries: Sequence[EptEntry]) -> set[tuple[str, str, str, int]]:
    """Keys of the entries with the least energy per token of their model, engine and workload."""
    found: dict[tuple[str, str, str], EptEntry] = {}
    for entry in entries:
        if entry.per_token_j is None:
            continue
        other = found.get(entry.key[:3])
        if other is None or entry.per_token_j < (other.per_token_j or 0.0):
            found[entry.key[:3]] = entry
    return {entry.key for entry in found.values()}


def _row(entry: EptEntry, best: set[tuple[str, str, str, int]]) -> list[str]:
    low, high = (entry.settings.get(f"EPT_total_J_per_tok_{end}") for end in ("low", "high"))
    refused = entry.per_token_j is None
    notes = [
        *(("best batch",) if entry.key in best else ()),
        *entry.flags,
        *((entry.reason,) if entry.reason else ()),
    ]
    tokens_per_s = (entry.input_tokens + entry.output_tokens) / (entry.duration_s or 1.0)
    return [
        entry.role,
        _workload(entry),
        str(entry.batch_size),
        _joules(entry.per_token_j),
        "n/a" if refused or low is None else f"{low:.4g} .. {high:.4g}",
        _joules(entry.per_output_token_j),
        "n/a" if refused else _joules(entry.settings.get("J_per_request")),
        _milli(entry.prefill),
        _milli(entry.decode),
        f"{tokens_per_s:.0f}" if entry.duration_s else "n/a",
        entry.source,
        "; ".join(notes),
    ]


def _workload(entry: EptEntry) -> str:
    asked = entry.workload
    if asked.mode == "fixed":
        return f"{asked.input_tokens} in {asked.new_tokens} out"
    return f"natural, to {asked.new_tokens} out"


def _joules(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"


def _milli(part: EptPart | None) -> str:
    return "n/a" if part is None else f"{1000 * part.energy_j / part.tokens:.4g}"
