"""What the table needs of the runs of a plan, as one small JSON file: figures with unit, source, flags and reason."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ekd_nemo.evals.compare import compare_sides, find_side
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.results import Score, read_results
from ekd_nemo.metrics.quality import near_chance
from ekd_nemo.metrics.quantity import Quantity
from ekd_nemo.metrics.summary import MethodSummary, RunSummary, Summary, summarise
from ekd_nemo.records.atomic import write_text
from ekd_nemo.records.jsonl import ReadReport, read_objects
from ekd_nemo.records.rundir import RunDir
from tools.study.commands import Study
from tools.study.plan import BASELINE, Plan, Run, runs_of

RECORDS = Path(__file__).with_name("records")
SCHEMA_VERSION: Final = 1
FIGURES: Final = (
    "steps", "tokens", "val_ce", "val_kl", "duration", "e_run", "e_charged", "energy_per_token",
    "e_eval", "ept_total", "t_star",
)  # fmt: skip
TERMS: Final = ("response_", "feature_", "relation_", "token_relation_")
_SIGNIFICANT: Final = 9  # digits that are kept of a float

Json = dict[str, Any]


def write_records(name: str, study: Study) -> Path:
    """Write the records of the finished trainings of a plan; unfinished ones are left out.

    Raises: EkdError if a run's records are broken.
    """
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{name}.json"
    text = json.dumps(records_of(name, study), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
    return path


def records_of(name: str, study: Study) -> Json:
    """The records of a plan; see `write_records`."""
    there = [
        run
        for run in runs_of(study.methods, study.plan)
        if (RunDir(study.runs / run.run_id).hf / "config.json").is_file()
    ]
    folders = [study.runs / run.run_id for run in there]
    makers = [study.shared] if study.shared.is_dir() else []
    summary = summarise([*folders, *makers]) if there else Summary((), (), ())
    found = {run.identity.run_id: run for run in summary.runs}
    return {
        "schema_version": SCHEMA_VERSION,
        "plan": name,
        "asked": _asked(study.plan, study.methods),
        "machine": _machine([found[run.run_id] for run in there]),
        "runs": [_run(run, found[run.run_id], study) for run in there],
        "n_star": list(_n_star(summary.methods, {run.run_id: run for run in there})),
    }


def _asked(plan: Plan, methods: Mapping[str, str]) -> Json:
    return {"methods": dict(methods), **plan.model_dump(mode="json")}


def _machine(runs: list[RunSummary]) -> Json:
    """Of the newest attempt: what has a bearing on the figures, and nothing that names the machine."""
    attempts = [attempt for run in runs for attempt in run.identity.attempts]
    if not attempts:
        return {}
    newest = max(attempts, key=lambda attempt: attempt.t_wall_ns)
    kept = ("torch", "nemo_toolkit", "megatron-core", "transformers", "lm-eval")
    devices = sorted({device.name for device in newest.devices})
    return {
        "python": newest.python,
        "packages": {key: newest.packages[key] for key in kept if key in newest.packages},
        "devices": devices,
    }


def _run(run: Run, summary: RunSummary, study: Study) -> Json:
    scores = read_results(summary.path)
    return {
        "run_id": run.run_id,
        "label": run.label,
        "seed": run.seed,
        "recipe_hash": summary.identity.recipe_hash,
        "attempts": len(summary.identity.attempts),
        "figures": {
            name: as_json(summary.figures[name]) for name in FIGURES if name in summary.figures
        },
        "first_step": _first_step(RunDir(summary.path)),
        "scores": [_score(score) for score in scores if score.primary or _is_compression(score)],
        "against_sft": list(_paired(run, study)),
    }


def _first_step(run: RunDir) -> Json:
    """The terms of the objective and the gradient's norm before clipping, where every method has the same weights."""
    lines = read_objects(run.train_log, ReadReport())
    first = next((line for line in lines if line.get("step") == 1 and "loss" in line), {})
    return {
        name: _rounded(value)
        for name, value in first.items()
        if name in ("loss", "ce", "grad_norm") or name.startswith(TERMS)
    }


def _is_compression(score: Score) -> bool:
    return score.metric == "bits_per_byte"


def _score(score: Score) -> Json:
    return {
        "role": score.role,
        "task": score.task,
        "metric": score.metric,
        "value": _rounded(score.value),
        "stderr": _rounded(score.stderr),
        "chance": _rounded(score.chance),
        "near_chance": score.chance is not None and near_chance(score),
        "items": score.n_samples,
    }


def _paired(run: Run, study: Study) -> Iterator[Json]:
    """The run's student against fine-tuning's of the same seed, item by item; nothing until both are scored."""
    baseline = Run(BASELINE, run.seed)
    folders = [study.runs / each.run_id for each in (run, baseline)]
    scored = [
        any(one.role == "student" for one in EvalDir(RunDir(folder).eval).stored())
        for folder in folders
    ]
    if run.label == BASELINE or not all(scored):
        return
    for row in compare_sides(*(find_side(str(folder)) for folder in folders)):
        if row.metric not in ("acc", "bits_per_byte"):
            continue
        found = row.difference
        yield {
            "task": row.task,
            "metric": row.metric,
            "items": found.num_items,
            "difference": _rounded(found.difference),
            "low": _rounded(found.low),
            "high": _rounded(found.high),
            "p_value": _rounded(found.p_value),
            "verdict": row.verdict,
        }


def _n_star(methods: tuple[MethodSummary, ...], known: Mapping[str, Run]) -> Iterator[Json]:
    for method in methods:
        labels = sorted({known[run].label for run in method.runs if run in known})
        if labels and "n_star" in method.figures:
            yield {"label": labels[0], **as_json(method.figures["n_star"])}


def as_json(quantity: Quantity) -> Json:
    """A figure without the keys that say nothing."""
    full: Json = {
        "value": _rounded(quantity.value),
        "unit": quantity.unit,
        "source": quantity.source,
        "low": _rounded(quantity.low),
        "high": _rounded(quantity.high),
        "flags": list(quantity.flags),
        "reason": quantity.reason,
    }
    return {key: value for key, value in full.items() if value not in (None, [])}


def of_json(body: Json) -> Quantity:
    """The figure again; its coverage is not kept."""
    return Quantity(
        body.get("value"),
        body.get("unit", ""),
        body.get("source"),
        low=body.get("low"),
        high=body.get("high"),
        flags=tuple(body.get("flags", ())),
        reason=body.get("reason"),
    )


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.{_SIGNIFICANT}g}") if isinstance(value, float) else value
