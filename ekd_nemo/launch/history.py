"""Which steps of a run have finished: `logs/steps.jsonl`, one line a finished step."""

import json
from collections.abc import Sequence

from ekd_nemo.launch.plan import Step
from ekd_nemo.records.jsonl import JsonlStore, ReadReport, read_objects
from ekd_nemo.records.lines import SCHEMA_VERSION
from ekd_nemo.records.rundir import RunDir

STEPS = "steps.jsonl"


def pending(run: RunDir, steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps still to be done: the first that is unfinished or whose products are gone, and all after it."""
    finished = _finished(run)
    for index, step in enumerate(steps):
        if step.name not in finished or not all(path.exists() for path in step.products):
            return tuple(steps[index:])
    return ()


def _finished(run: RunDir) -> set[str]:
    path = run.logs / STEPS
    if not path.is_file():
        return set()
    return {str(line["step"]) for line in read_objects(path, ReadReport()) if "step" in line}


def note_finished(run: RunDir, step: Step, attempt: int, duration_s: float) -> None:
    """Add a line for a finished step."""
    line = {
        "schema_version": SCHEMA_VERSION,
        "step": step.name,
        "attempt": attempt,
        "duration_s": round(duration_s, 3),
    }
    with JsonlStore(run.logs / STEPS) as store:
        store.append_text(json.dumps(line) + "\n")
