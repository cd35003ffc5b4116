"""lighteval in an environment of its own: run by path with that environment's Python, `light_runner.py REQUEST.json`.

Nothing of ekd is imported here: the environment does not have it. Standard output carries the same events as that of
`ekd_nemo.harness.lm`. The registry of lighteval 0.13.0 imports every task module, and `tiny_benchmarks` downloads a
pickle when it is imported and loads it; an empty module takes its place.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

BLOCKED = "lighteval.tasks.tasks.tiny_benchmarks"
EXIT_FAILURE, EXIT_USER = 1, 2
BATCH_STEP = 8  # lighteval rounds batch sizes to multiples of eight, and four down to one

Emit = Callable[..., None]


def main(argv: list[str]) -> int:
    """Do every job of the request; 0, or the exit code of what stopped it, which has been told."""
    request = json.loads(Path(argv[0]).read_text())
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(**event: Any) -> None:
        stream.write(json.dumps(event) + "\n")
        stream.flush()

    block_downloads()
    os.environ["EKD_LIGHT_DATA"] = request["data"] or ""
    for job in request["jobs"]:
        emit(event="model", job=job["name"], model=job["model"])
        for task in job["tasks"]:
            code = run_task(request, job, task, emit)
            if code:
                return code
    return 0


def block_downloads() -> None:
    """Put an empty module where lighteval would unpickle a download."""
    empty = ModuleType(BLOCKED, "Left out: it loads a downloaded pickle when imported.")
    empty.TASKS_TABLE = []  # type: ignore[attr-defined]
    sys.modules[BLOCKED] = empty


def run_task(request: dict[str, Any], job: dict[str, Any], task: str, emit: Emit) -> int:
    """One task on one model; whatever lighteval raises becomes one line."""
    emit(event="task", job=job["name"], task=task)
    out = Path(job["out"]) / task
    try:
        device = evaluate(request, job["model"], task, out)
    except Exception as error:
        traceback.print_exc()
        unknown = str(error).startswith("Cannot find task")
        message = (
            f"unknown task '{task}'; lighteval knows its own, ekd's, and those of --custom-tasks"
            if unknown
            else f"{task} on {job['model']}: {told(error)}"
        )
        emit(event="error", message=message, exit_code=EXIT_USER if unknown else EXIT_FAILURE)
        return EXIT_USER if unknown else EXIT_FAILURE
    emit(event="done", job=job["name"], task=task, out=str(out), device=device)
    return 0


def told(error: BaseException) -> str:
    """As in `ekd_nemo.harness.events`: kind and message on one line, with the first cause."""
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    reason = " ".join(str(error).split())[:300]
    cause = " ".join(str(first).split())[:200]
    because = f" ({type(first).__name__}: {cause})" if cause not in reason else ""
    return f"{type(error).__name__}: {reason}{because}"


def evaluate(request: dict[str, Any], model: str, task: str, out: Path) -> str:
    """Let lighteval evaluate and write; its results and items end up directly below `out`. Returns the device."""
    import torch
    from lighteval.main_accelerate import accelerate  # pyright: ignore[reportMissingImports]

    settings = request["settings"]
    device = settings["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = settings["dtype"]
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    arguments = {
        "model_name": model,
        "dtype": dtype,
        "device": device,
        "batch_size": -(-settings["batch_size"] // BATCH_STEP) * BATCH_STEP,
        "cache_dir": request["cache"],
        "trust_remote_code": settings["trust_remote_code"],
        "override_chat_template": settings["apply_chat_template"],
    }
    accelerate(
        model_args=",".join(f"{key}={value}" for key, value in arguments.items()),
        tasks=f"{task}|{settings['num_fewshot'] or 0}",
        custom_tasks=request["custom_tasks"],
        output_dir=str(out),
        save_details=True,
        max_samples=settings["limit"],
    )
    gather(out)
    return device


def gather(out: Path) -> None:
    """Move the results file up, and write the logged items as lines like lm-eval's."""
    (results,) = (out / "results").rglob("results_*.json")
    flat = out / "lighteval"
    flat.mkdir()
    for table in (out / "details").rglob("details_*.parquet"):
        name = table.name.removeprefix("details_").partition("|")[0]
        date = table.stem.rpartition("_")[2]
        (flat / f"samples_{name}_{date}.jsonl").write_text(
            "".join(map(item_line, read_rows(table)))
        )
    results.rename(flat / results.name)


def read_rows(table: Path) -> list[dict[str, Any]]:
    """The items of a details file."""
    from pyarrow import parquet

    return parquet.read_table(table).to_pylist()


def item_line(row: dict[str, Any]) -> str:
    """One item: its number, hashes of question, prompt and answers, and its metrics."""
    from hashlib import sha256

    doc, metrics = row["doc"], row["metric"]
    asked = {
        "doc": doc["query"],
        "prompt": doc["query"],
        "target": json.dumps([doc["choices"], doc["gold_index"]]),
    }
    hashes = {f"{name}_hash": sha256(text.encode()).hexdigest() for name, text in asked.items()}
    line = {
        "doc_id": doc["id"],
        "doc": doc,
        **hashes,
        "filter": "none",
        "metrics": list(metrics),
        **metrics,
    }
    return json.dumps(line, default=str) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
