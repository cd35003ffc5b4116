"""`ekd eval ept`, the light part: which points to measure, the worker that measures them, and its raw log."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from ekd_nemo.errors import RunError
from ekd_nemo.evals.ept_request import EptJob, EptMeasured, EptPoint, EptRequest, EptSettings
from ekd_nemo.evals.harness_process import Event, run_harness
from ekd_nemo.evals.prompts import PromptSource, drawn
from ekd_nemo.records.jsonl import JsonlStore
from ekd_nemo.records.rundir import RunDir

WORKER: Final = (sys.executable, "-m", "ekd_nemo.worker", "ept")
LOG: Final = "ept.jsonl"  # raw windows; the energies follow from them and from telemetry/
Tell = Callable[[str], None]


def points_of(
    batch_sizes: Sequence[int],
    input_tokens: Sequence[int],
    new_tokens: Sequence[int],
    *,
    natural: bool,
) -> tuple[EptPoint, ...]:
    """The sweep: every fixed pair of lengths at every batch size, then natural ends at every batch size."""
    fixed = [
        EptPoint(mode="fixed", batch_size=size, input_tokens=read, new_tokens=write)
        for read, write, size in product(input_tokens, new_tokens, batch_sizes)
    ]
    open_ended = [
        EptPoint(mode="natural", batch_size=size, input_tokens=None, new_tokens=write)
        for write, size in product(new_tokens, batch_sizes)
    ]
    return (*fixed, *open_ended) if natural else tuple(fixed)


def run_ept(
    run: RunDir,
    jobs: Sequence[EptJob],
    settings: EptSettings,
    prompts: PromptSource,
    uuids: Sequence[str],
    attempt: int,
    tell: Tell,
) -> None:
    """Measure every point in one worker process; each is appended to the run's raw log when it is done.

    Raises:
        UserError: for prompts, lengths or an engine that cannot be had.
        RunError: if the worker fails or the log cannot be written; points before that are kept.
    """
    texts = prompts.texts
    request = EptRequest(
        settings=settings,
        jobs=tuple(jobs),
        texts=None if texts is None else drawn(texts, settings.requests, settings.seed),
        hub=prompts.hub,
        marks=str(run.marks(0)),
        uuids=tuple(uuids),
        attempt=attempt,
    )
    run.logs.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".ept-", dir=run.logs))
    try:
        path = scratch / "request.json"
        path.write_text(request.model_dump_json(indent=2))
        offline = scratch / "datasets" if prompts.hub is None else None
        with JsonlStore(run.logs / LOG) as store:
            receive = _Receiver(store, tell)
            run_harness(WORKER, path, run.logs / "ept.log", receive, offline=offline)
    except OSError as error:
        raise RunError(f"results cannot be stored: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Receiver:
    """Stores what the worker reports, and tells the user."""

    def __init__(self, store: JsonlStore, tell: Tell) -> None:
        self._store = store
        self._tell = tell

    def __call__(self, event: Event) -> None:
        match event["event"]:
            case "model":
                self._tell(f"{event['job']}: loading {event['model']}")
            case "point":
                self._tell(f"{event['job']}: {event['point']}")
            case "skipped":
                self._tell(f"{event['job']}: {event['point']}: left out: {event['reason']}")
            case "measured":
                found = EptMeasured.model_validate(event["found"])
                self._store.append_text(found.model_dump_json() + "\n")
            case other:
                raise AssertionError(f"unknown event {other}")


def read_measured(run: RunDir) -> list[EptMeasured]:
    """The raw log, the latest of each job and point last; a torn line is left out."""
    path = run.logs / LOG
    if not path.is_file():
        return []
    return list(_parsed(path.read_text(encoding="utf-8").splitlines()))


def _parsed(lines: Iterable[str]) -> Iterable[EptMeasured]:
    for line in lines:
        try:
            yield EptMeasured.model_validate_json(line)
        except ValidationError:
            continue  # cut short when its writer was killed
