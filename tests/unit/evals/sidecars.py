"""Settings and harness output as tests need them: real lm-eval JSON from tests/golden/lm_eval."""

import shutil
from pathlib import Path
from typing import Any

from ekd_nemo.evals.sidecar import EvaluatedModel, Sidecar

GOLDEN = Path(__file__).parents[2] / "golden" / "lm_eval"
DATED = "2026-11-21T19-44-21.969807"


def sidecar(task: str, role: str = "model", **changes: Any) -> Sidecar:
    """The settings of a result of weights `w1` under request `r1`."""
    plain = Sidecar(
        role=role,
        task=task,
        harness="lm-eval",
        harness_version="0.4.13",
        request={},
        request_hash="r1",
        model=EvaluatedModel(path="models/m", weights_sha256="w1", tokenizer_sha256="t1"),
        batch_size=4,
        device="cpu",
        trust_remote_code=False,
        duration_s=1.0,
    )
    return plain.model_copy(update=changes)


def harness_output(folder: Path, golden: str, items: dict[str, int]) -> Path:
    """What lm-eval leaves in its output folder: results, and `items` logged lines a subtask."""
    out = folder / "models__m"
    out.mkdir(parents=True)
    shutil.copyfile(GOLDEN / golden, out / f"results_{DATED}.json")
    for subtask, count in items.items():
        lines = "".join(f'{{"doc_id": {number}, "acc": 1}}\n' for number in range(count))
        (out / f"samples_{subtask}_{DATED}.jsonl").write_text(lines)
    return folder
