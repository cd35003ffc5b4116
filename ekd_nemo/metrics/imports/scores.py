"""`eval.json` of the earlier framework: a harness's results, taken over as they are where they compare."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from ekd_nemo.errors import DataError
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.sidecar import EvaluatedModel, Sidecar
from ekd_nemo.metrics.quality import ScoreMismatchError
from ekd_nemo.records.atomic import write_bytes, write_text

TASK: Final = "imported"
_UNKNOWN: Final = "unknown"


def read_scores(path: Path) -> dict[str, Any]:
    """A results file of lm-eval; metrics without a filter's name get `none`.

    Raises:
        DataError: if it is not one.
    """
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    body = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
    results = body.get("results")
    if not isinstance(results, dict) or not all(
        isinstance(row, dict) for row in cast("dict[str, Any]", results).values()
    ):
        raise DataError(f"{path}: no object `results` with an object per task")
    tasks = cast("dict[str, dict[str, Any]]", results)
    body["results"] = {
        task: {_filtered(key): value for key, value in row.items()} for task, row in tasks.items()
    }
    return body


def _filtered(key: str) -> str:
    return key if "," in key or key in ("alias", "name", "sample_len") else f"{key},none"


def check_comparable(
    student: Mapping[str, Any], teacher: Mapping[str, Any], names: tuple[Path, Path]
) -> None:
    """Raise ScoreMismatchError, naming the pair, where a task of both was scored by different metrics."""
    for task in sorted(student["results"].keys() & teacher["results"].keys()):
        ours, theirs = (_metrics(body["results"][task]) for body in (student, teacher))
        if ours and theirs and not ours & theirs:
            raise ScoreMismatchError(
                f"{task}: {names[0]} has {', '.join(sorted(ours))} and {names[1]} has {', '.join(sorted(theirs))}; "
                "OM_perf takes the same metric of both (--without-scores imports the energy alone)"
            )


def _metrics(row: Mapping[str, object]) -> set[str]:
    return {
        key for key, value in row.items() if isinstance(value, int | float) and "_stderr" not in key
    }


def store_scores(folder: Path, role: str, body: Mapping[str, Any], source: Path) -> None:
    """Put results into a run's `eval/` under a role; the settings say that nothing else is known."""
    data = (json.dumps(body, indent=2) + "\n").encode()
    model = EvaluatedModel(
        path=str(source.parent), weights_sha256=_UNKNOWN, tokenizer_sha256=_UNKNOWN
    )
    settings = Sidecar(
        role=role, task=TASK, harness="lm-eval", harness_version=str(body.get("lm_eval_version", _UNKNOWN)),
        request={"imported_from": str(source)}, request_hash=_UNKNOWN, model=model, batch_size=1, device=_UNKNOWN,
        trust_remote_code=False, duration_s=0.0, results_sha256=hashlib.sha256(data).hexdigest(),
    )  # fmt: skip
    target = EvalDir(folder)
    path = target.settings(role, TASK)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, settings.model_dump_json(indent=2) + "\n")
    write_bytes(target.results(role, TASK), data)
