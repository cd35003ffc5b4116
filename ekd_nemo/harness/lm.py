"""lm-eval in the worker process: several models one after another, each task stored as soon as it is done.

Standard output carries one JSON object a line, an event; whatever the harness prints goes to
standard error.
"""

import difflib
import functools
import gc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch.utils import collect_env

from ekd_nemo.errors import EkdError, RunError, UserError
from ekd_nemo.evals.request import SEED, Job, LmSettings, Request
from ekd_nemo.evals.taskset import BUILT_IN
from ekd_nemo.harness.events import Emit, guarded, own_stdout
from ekd_nemo.harness.lm_model import chosen_batch, load_model


def main(argv: Sequence[str]) -> int:
    """Run the request of the file `argv[0]`; raises what stopped it after an `error` event."""
    emit = own_stdout()
    logging.getLogger().setLevel(logging.INFO)
    try:
        run(Request.model_validate_json(Path(argv[0]).read_bytes()), emit)
    except EkdError as error:
        emit(event="error", message=str(error), exit_code=error.exit_code)
        raise
    return 0


def run(request: Request, emit: Emit) -> None:
    """Evaluate every job.

    Raises:
        UserError: for a task that does not exist; nothing has been evaluated then.
        RunError: if a model cannot be loaded or a task fails; what was done before has been stored.
    """
    # 2.4 s a call for a text that is the same throughout the process.
    collect_env.get_pretty_env_info = functools.cache(collect_env.get_pretty_env_info)
    tasks = TaskManager(
        include_path=list(request.include_paths),
        include_defaults=request.include_defaults,
    )
    _check_tasks(request.settings.tasks, [*BUILT_IN, *tasks.all_tasks])
    for job in request.jobs:
        _run_job(job, request.settings, tasks, emit)


def _check_tasks(asked: Sequence[str], known: Sequence[str]) -> None:
    for task in asked:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=3, cutoff=0.6)
            hint = (
                f"did you mean {', '.join(near)}?"
                if near
                else f"{len(known)} are known, see `lm_eval ls tasks`"
            )
            raise UserError(f"unknown task '{task}'; {hint}")


def _run_job(job: Job, settings: LmSettings, tasks: TaskManager, emit: Emit) -> None:
    emit(event="model", job=job.name, model=job.model)
    device = _device(settings.device)
    model = guarded(f"{job.model}: cannot be loaded", lambda: load_model(job, settings, device))
    for task in job.tasks:
        emit(event="task", job=job.name, task=task)
        out = Path(job.out) / task
        action = functools.partial(_run_task, model, job, task, settings, tasks, device, out)
        guarded(f"{task} on {job.model}", functools.partial(_with_data, task, action))
        emit(
            event="done",
            job=job.name,
            task=task,
            out=str(out),
            device=device,
            batch_size=chosen_batch(model),
            ranks=model.world_size,
        )
    del model
    gc.collect()


def _with_data(task: str, action: Callable[[], None]) -> None:
    """Say what to do where the hub that has a task's data is out of reach."""
    try:
        action()
    except ConnectionError as error:
        raise RunError(
            f"{task}: its data are on a hub that cannot be reached ({' '.join(str(error).split())[:200]}); "
            "without one, give task files over local data with --include-path"
        ) from error


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; accepted here: cpu, auto")
    return asked


def _run_task(
    model: HFLM,
    job: Job,
    task: str,
    settings: LmSettings,
    tasks: TaskManager,
    device: str,
    out: Path,
) -> None:
    """One task on a loaded model, stored by the harness's own tracker."""
    tracker = EvaluationTracker(output_path=str(out))
    results = simple_evaluate(
        model=model,
        model_args={
            "pretrained": job.model,
            "trust_remote_code": settings.trust_remote_code,
        },
        tasks=[task],
        num_fewshot=settings.shots_of(task),
        batch_size=settings.batch_size,
        device=device,
        limit=settings.limit,
        log_samples=True,
        evaluation_tracker=tracker,
        apply_chat_template=settings.apply_chat_template,
        task_manager=tasks,
        random_seed=SEED,
        numpy_random_seed=SEED,
        torch_random_seed=SEED,
        fewshot_random_seed=SEED,
    )
    if model.rank != 0:
        return  # rank 0 gets the results
    assert results is not None
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])
