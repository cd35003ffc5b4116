"""What `ekd metrics import` takes: folders of the earlier framework, or one power log as CSV."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ekd_nemo.errors import DataError, RunDirError
from ekd_nemo.metrics.imports.earlier_telemetry import read_earlier
from ekd_nemo.metrics.imports.ept import read_ept_benchmark
from ekd_nemo.metrics.imports.foreign import ForeignPower
from ekd_nemo.metrics.imports.power_csv import read_power_csv
from ekd_nemo.metrics.imports.scores import check_comparable, read_scores, store_scores
from ekd_nemo.metrics.imports.write import identity_of, plain_name, write_run
from ekd_nemo.records.ept import EptEntry, EptFile, write_ept
from ekd_nemo.records.phases import Phase
from ekd_nemo.records.rundir import RunDir

_BASE: Final = "base"
_TEACHER: Final = "teacher"
_METHODS: Final = ("response", "feature", "relation", "sft", "combined")


@dataclass(frozen=True, slots=True)
class Imported:
    """One run that was made.

    Attributes:
        flags: of its energies.
        dropped: lines and values left out, in words.
    """

    run: RunDir
    flags: tuple[str, ...]
    dropped: str


def import_path(
    path: Path, runs: Path, *, scores: bool = True, phase: Phase | None = None
) -> list[Imported]:
    """Make run directories from a folder of the earlier framework, or from a CSV power log.

    Everything is read and checked before the first run is made; nothing that exists is written to.

    Args:
        path: a folder that holds `CATEGORY/MODEL/telemetry.jsonl`, or a CSV file.
        runs: where the run directories go.
        scores: whether to take over `eval.json`.
        phase: what the samples count as; by default `ept` under BASE and `student_train` elsewhere.

    Raises:
        DataError: where a file is not what it should be; ScoreMismatchError where student and teacher do not compare.
        RunDirError: if a run of that name exists.
    """
    plans = [_csv_plan(path, phase)] if path.is_file() else _plans(path, scores, phase)
    if not plans:
        raise DataError(f"{path}: no CATEGORY/MODEL/telemetry.jsonl below it, and not a CSV file")
    for plan in plans:
        if (runs / plan.run_id).exists():
            raise RunDirError(
                f"{runs / plan.run_id}: exists; import into another --runs or remove it"
            )
    return [_make(plan, runs) for plan in plans]


@dataclass(frozen=True, slots=True)
class _Plan:
    run_id: str
    recipe: str
    method: str
    source: Path
    power: ForeignPower
    phase: Phase
    scores: dict[str, tuple[dict[str, Any], Path]]
    benchmarks: tuple[EptEntry, ...]


def _csv_plan(path: Path, phase: Phase | None) -> _Plan:
    name = plain_name(path.stem)
    return _Plan(
        name, name, "imported", path, read_power_csv(path), phase or "student_train", {}, ()
    )


def _plans(folder: Path, scores: bool, phase: Phase | None) -> list[_Plan]:
    """A plan for each model's folder with telemetry, checked against the teacher's scores."""
    models = list(_models(folder))
    teacher = next((m for m in models if _is(m, _TEACHER) and (m / "eval.json").is_file()), None)
    found = read_scores(teacher / "eval.json") if scores and teacher else None
    benchmark = _teachers_benchmark(models)
    plans: list[_Plan] = []
    for model in models:
        telemetry = model / "telemetry.jsonl"
        if not telemetry.is_file():
            continue
        parts: dict[str, tuple[dict[str, Any], Path]] = {}
        if found is not None and teacher is not None:
            parts["teacher"] = (found, teacher / "eval.json")
        own = model / "eval.json"
        if scores and own.is_file() and not _is(model, _TEACHER):
            body = read_scores(own)
            if found is not None and teacher is not None:
                check_comparable(body, found, (own, teacher / "eval.json"))
            parts["student"] = (body, own)
        category = model.parent.name
        power = read_earlier(telemetry)
        is_base = category.lower() == _BASE
        benchmarks = benchmark
        if (model / "ept.json").is_file() and not _is(model, _TEACHER):
            # under BASE the telemetry is the benchmark's; elsewhere it is the training's
            own_power = power if is_base else None
            mine = read_ept_benchmark(model / "ept.json", "student", own_power)
            benchmarks = (mine, *benchmark)
        plans.append(
            _Plan(
                plain_name(f"{category}-{model.name}"),
                plain_name(category),
                _method(category),
                telemetry,
                power,
                phase or ("ept" if is_base else "student_train"),
                parts,
                benchmarks,
            )
        )
    return plans


def _teachers_benchmark(models: Sequence[Path]) -> tuple[EptEntry, ...]:
    """The teacher's energy per token, which stands beside every student's."""
    for model in models:
        if _is(model, _TEACHER) and (model / "ept.json").is_file():
            telemetry = model / "telemetry.jsonl"
            power = read_earlier(telemetry) if telemetry.is_file() else None
            return (read_ept_benchmark(model / "ept.json", "teacher", power),)
    return ()


def _models(folder: Path) -> Iterator[Path]:
    """CATEGORY/MODEL folders, sorted."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder or file")
    files = {
        path.parent
        for name in ("telemetry.jsonl", "eval.json", "ept.json")
        for path in folder.glob(f"*/*/{name}")
    }
    return iter(sorted(files))


def _is(model: Path, name: str) -> bool:
    return model.parent.name.lower() == _BASE and model.name.lower() == name


def _method(category: str) -> str:
    """The method that a category's name speaks of."""
    return next((method for method in _METHODS if method in category.lower()), "imported")


def _make(plan: _Plan, runs: Path) -> Imported:
    """Write one run beside its place, then move it there."""
    runs.mkdir(parents=True, exist_ok=True)
    target = RunDir(runs / plan.run_id)
    scratch = RunDir(runs / f".{plan.run_id}.importing")
    shutil.rmtree(scratch.path, ignore_errors=True)
    try:
        identity = identity_of(plan.run_id, plan.recipe, plan.method, plan.source)
        flags = write_run(scratch, plan.power, identity, plan.phase, str(plan.source))
        for role, (body, source) in plan.scores.items():
            store_scores(scratch.eval, role, body, source)
        if plan.benchmarks:
            write_ept(scratch.ept_json, EptFile().with_entries(plan.benchmarks))
        scratch.path.replace(target.path)
    finally:
        shutil.rmtree(scratch.path, ignore_errors=True)
    dropped = ", ".join(
        f"{count} {reason}" for reason, count in sorted(plan.power.dropped.items()) if count
    )
    return Imported(target, flags, dropped)
