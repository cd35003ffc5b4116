"""The energy-per-token benchmark in the worker process: each point reported as soon as it is measured.

Standard output carries one JSON object a line, an event, as that of `ekd_nemo.harness.lm`.
"""

import gc
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ekd_nemo.errors import EkdError, UserError
from ekd_nemo.evals.ept_request import EptJob, EptRequest
from ekd_nemo.evals.prompts import drawn, prompt_of, prompts_sha256
from ekd_nemo.harness.ept_blocks import Block, measure
from ekd_nemo.harness.ept_engine import Engine, HfEngine, OutOfMemoryError
from ekd_nemo.harness.events import Emit, guarded, own_stdout
from ekd_nemo.telemetry.marks import Marks

_ONE_PROCESS = {"tensor": 0, "pipeline": 0, "data": 0}


def main(argv: Sequence[str]) -> int:
    """Run the request of the file `argv[0]`; raises what stopped it after an `error` event."""
    emit = own_stdout()
    try:
        run(EptRequest.model_validate_json(Path(argv[0]).read_bytes()), emit)
    except EkdError as error:
        emit(event="error", message=str(error), exit_code=error.exit_code)
        raise
    return 0


def run(request: EptRequest, emit: Emit) -> None:
    """Measure every point of every job.

    Raises:
        UserError: for prompts, lengths or an engine that cannot be had.
        RunError: if a model cannot be loaded or a point fails; what was reported before is kept.
    """
    texts = request.texts if request.texts is not None else _hub_texts(request)
    digest = prompts_sha256(texts)
    for job in request.jobs:
        emit(event="model", job=job.name, model=job.model)
        _run_job(request, job, texts, digest, emit)
        gc.collect()


def _run_job(
    request: EptRequest, job: EptJob, texts: Sequence[str], digest: str, emit: Emit
) -> None:
    engine = guarded(f"{job.model}: cannot be loaded", lambda: _engine(request, job))
    marks = Marks(
        Path(request.marks),
        rank=0,
        uuids=engine.uuids,
        parallel=_ONE_PROCESS,
        attempt=request.attempt,
    )
    with marks, marks.phase("ept"):
        for point in job.points:
            emit(event="point", job=job.name, point=point.words)
            try:
                found = guarded(
                    f"{point.words} on {job.model}",
                    lambda point=point: measure(
                        engine, job.name, texts, digest, point, request.settings, _block(marks)
                    ),
                )
            except OutOfMemoryError as error:
                emit(event="skipped", job=job.name, point=point.words, reason=str(error))
                continue
            emit(event="measured", found=found.model_dump(mode="json"))


def _block(marks: Marks) -> Block:
    """A stretch of phase `ept` of its own: the sampler reads its counters at both ends."""

    @contextmanager
    def block() -> Generator[None]:
        with marks.phase("ept"):
            yield

    return block


def _engine(request: EptRequest, job: EptJob) -> Engine:
    if request.settings.engine == "vllm":
        from ekd_nemo.harness.ept_vllm import VllmEngine

        largest = max(point.batch_size for point in job.points)
        return VllmEngine(job.model, request.settings, request.uuids, largest)
    return HfEngine(job.model, request.settings, request.uuids)


def _hub_texts(request: EptRequest) -> tuple[str, ...]:
    """A seeded sample of a data set's prompts."""
    from ekd_nemo.config.data import HubSource
    from ekd_nemo.data.hub import hub_records

    assert request.hub is not None, "texts or hub"
    name, split = request.hub
    settings = request.settings
    source = HubSource(name=name, split=split, max_documents=settings.requests)
    rows, _ = hub_records(source, settings.seed)
    texts = [prompt_of(row, f"{name}:{number}") for number, row in enumerate(rows)]
    if not any(texts):
        raise UserError(f"--prompts hub:{name}:{split}: holds no prompt")
    return drawn(texts, settings.requests, settings.seed)
