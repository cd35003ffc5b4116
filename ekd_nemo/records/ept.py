"""The energy-per-token benchmark's record: `ept.json` of a run, one entry a model, workload and batch size.

An entry carries the keys that the earlier framework wrote (`E_run_J, T_in, T_out, EPT_in_J_per_tok,
EPT_out_J_per_tok, EPT_total_J_per_tok`), which follow from its repeats, and what is needed to compare it: uncertainty,
devices, engine and settings. Two entries compare where `workload_hash` and `engine` are equal.
"""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ekd_nemo.errors import DataError
from ekd_nemo.records.atomic import write_text

MIN_EPT_S: Final = 5.0
_CLOSE: Final = 1e-6  # relative: the derived keys are rounded by whoever writes them

Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(gt=0)]
Joules = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PerToken = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
EptRole = Literal["student", "teacher", "base", "model"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class EptModel(_Section):
    """The model that answered: a folder and what its content hashed to; null: not known (imported)."""

    path: str
    weights_sha256: str | None = None
    tokenizer_sha256: str | None = None


class EptEngine(_Section):
    """What ran the model: energies compare only within one engine.

    Attributes:
        name: `transformers`, `vllm`, `unknown` for imported results.
        dtype: of the weights, as the engine calls it.
        tensor: devices that hold one copy of the model together.
    """

    name: Text
    version: str = ""
    dtype: str = ""
    tensor: PositiveInt = 1


class EptDevice(_Section):
    """One device that the model occupied; all of them are in the energy."""

    uuid: Text
    name: str = ""
    node: str = ""


class EptWorkload(_Section):
    """What was asked, without the batch size.

    Attributes:
        prompts: a file, a data set or `built-in`, in words; `prompts_sha256` of the prompts as they were tokenised.
        mode: `fixed`: input and output lengths are the same for every request and every model, end-of-sequence
            ignored; `natural`: each answer ends where the model ends it. Ratios take `fixed`.
        input_tokens: of each request where they are fixed; null where prompts keep their own length.
        new_tokens: of each request where fixed, else the most.
        requests: prompts of one repeat.
    """

    prompts: Text
    prompts_sha256: str = ""
    mode: Literal["fixed", "natural"]
    input_tokens: PositiveInt | None = None
    new_tokens: PositiveInt | None = None
    requests: PositiveInt | None = None
    seed: Count | None = None
    do_sample: bool = False

    def hashed(self) -> str:
        """Twelve hex digits that are equal if and only if two models were asked the same."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class EptRepeat(_Section):
    """One measured pass over the workload, warm-up left out.

    Attributes:
        energy_j: accelerators, the whole pass; null: not measured, `reason` says why.
        duration_s: of the pass, on a monotonic clock; null: not known (imported results).
        input_tokens, output_tokens: counted from the generation itself, padding left out.
        coverage: share of the pass between samples without a gap; null: not known.
    """

    energy_j: Joules | None
    duration_s: Seconds | None
    input_tokens: Count
    output_tokens: Count
    requests: Count
    coverage: Annotated[float, Field(ge=0, le=1)] | None = None
    flags: tuple[str, ...] = ()
    reason: str | None = None

    @model_validator(mode="after")
    def _missing_has_a_reason(self) -> Self:
        if self.energy_j is None and not self.reason:
            raise ValueError("a repeat without energy_j needs its reason")
        return self


class EptPart(_Section):
    """Prefill or decode, measured apart over at least so many seconds of nothing else.

    Attributes:
        tokens: input tokens for prefill, generated ones for decode.
    """

    energy_j: Joules
    duration_s: Seconds
    tokens: PositiveInt


class EptEntry(_Section):
    """One model on one workload at one batch size.

    Attributes:
        source: of the energy; `estimated` where no meter measures it.
        uncertainty_pct: of the meter, absolute, as it promises; null: not known.
        meter: as in the power records.
        repeats: at least one; figures are over all repeats that have an energy.
        settings: anything else that decides the energy (power limit, KV cache, attention), by name.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), populate_by_name=True
    )

    role: EptRole
    model: EptModel
    engine: EptEngine
    devices: tuple[EptDevice, ...]
    workload: EptWorkload
    workload_hash: Text
    batch_size: PositiveInt
    source: Literal["measured", "estimated", "replayed"]
    meter: str = ""
    uncertainty_pct: Annotated[float, Field(ge=0)] | None = None
    repeats: Annotated[tuple[EptRepeat, ...], Field(min_length=1)]
    prefill: EptPart | None = None
    decode: EptPart | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    flags: tuple[str, ...] = ()
    reason: str | None = None
    energy_j: Joules | None = Field(alias="E_run_J")
    input_tokens: Count = Field(alias="T_in")
    output_tokens: Count = Field(alias="T_out")
    per_input_token_j: PerToken | None = Field(alias="EPT_in_J_per_tok")
    per_output_token_j: PerToken | None = Field(alias="EPT_out_J_per_tok")
    per_token_j: PerToken | None = Field(alias="EPT_total_J_per_tok")

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.workload_hash != self.workload.hashed():
            raise ValueError("workload_hash is not that of workload")
        for name, stated, computed in zip(
            _DERIVED, _stated(self), _derived(self.repeats), strict=True
        ):
            if not _same(stated, computed):
                raise ValueError(f"{name} is {stated}, but the repeats give {computed}")
        return self

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What an entry of a file is known by: one replaces another of the same key."""
        engine = f"{self.engine.name} {self.engine.dtype} {self.engine.tensor}"
        return self.role, engine, self.workload_hash, self.batch_size

    @property
    def duration_s(self) -> float | None:
        """Measured work of all repeats that have an energy, in s; None where one's is not known."""
        return _duration_s(self.repeats)


class EptFile(BaseModel):
    """The content of `ept.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    entries: tuple[EptEntry, ...] = ()

    def with_entries(self, entries: Iterable[EptEntry]) -> "EptFile":
        """The same file with some entries added, each in place of the one with its key; sorted by key."""
        merged = {entry.key: entry for entry in (*self.entries, *entries)}
        return EptFile(entries=tuple(merged[key] for key in sorted(merged)))


_DERIVED: Final = (
    "E_run_J", "T_in", "T_out", "EPT_in_J_per_tok", "EPT_out_J_per_tok", "EPT_total_J_per_tok"
)  # fmt: skip
_Figures = tuple[float | None, int, int, float | None, float | None, float | None]


def ept_entry(*, repeats: Iterable[EptRepeat], workload: EptWorkload, **settings: Any) -> EptEntry:
    """An entry with the derived keys filled in from its repeats.

    Below 5 s of measured work in all, the energies per token are refused (null); `reason` says so.

    Raises: pydantic.ValidationError naming the key that is not right.
    """
    measured = tuple(repeats)
    derived = dict(zip(_DERIVED, _derived(measured), strict=True))
    reason = settings.pop("reason", None) or _why_refused(measured)
    return EptEntry.model_validate(
        {
            **settings,
            "repeats": measured,
            "workload": workload,
            "workload_hash": workload.hashed(),
            "reason": reason,
            **derived,
        }
    )


def _derived(repeats: Iterable[EptRepeat]) -> _Figures:
    """Sums over the repeats that have an energy, and the ratios where at least 5 s were measured."""
    known = [repeat for repeat in repeats if repeat.energy_j is not None]
    energy_j = math.fsum(repeat.energy_j or 0.0 for repeat in known) if known else None
    tokens_in = sum(repeat.input_tokens for repeat in known)
    tokens_out = sum(repeat.output_tokens for repeat in known)
    refused = _why_refused(known) is not None

    def over(tokens: int) -> float | None:
        return None if energy_j is None or refused or tokens == 0 else energy_j / tokens

    return energy_j, tokens_in, tokens_out, over(tokens_in), over(tokens_out), over(
        tokens_in + tokens_out
    )  # fmt: skip


def _why_refused(repeats: Iterable[EptRepeat]) -> str | None:
    """Why these repeats give no energy per token; None if they do."""
    known = [repeat for repeat in repeats if repeat.energy_j is not None]
    if not known:
        return next((r.reason for r in repeats if r.reason), "no repeat has an energy")
    measured_s = _duration_s(known)
    if measured_s is not None and measured_s < MIN_EPT_S:
        return f"only {measured_s:.3g} s of measured work, {MIN_EPT_S:g} s needed"
    return None


def _duration_s(repeats: Iterable[EptRepeat]) -> float | None:
    durations = [repeat.duration_s for repeat in repeats if repeat.energy_j is not None]
    known = [duration_s for duration_s in durations if duration_s is not None]
    return math.fsum(known) if len(known) == len(durations) else None


def _stated(entry: EptEntry) -> _Figures:
    return (
        entry.energy_j,
        entry.input_tokens,
        entry.output_tokens,
        entry.per_input_token_j,
        entry.per_output_token_j,
        entry.per_token_j,
    )


def _same(stated: float | None, computed: float | None) -> bool:
    if stated is None or computed is None:
        return stated is computed
    return math.isclose(stated, computed, rel_tol=_CLOSE, abs_tol=1e-12)


def read_ept(path: Path) -> EptFile:
    """An `ept.json`, checked; empty where there is no such file.

    Raises: DataError naming file and key if it is not one.
    """
    if not path.is_file():
        return EptFile()
    try:
        return EptFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{path}: {where}: {first['msg']}") from None


def write_ept(path: Path, file: EptFile) -> None:
    """Replace an `ept.json` in one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, file.model_dump_json(indent=2, by_alias=True) + "\n")
