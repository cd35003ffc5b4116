"""`ekd eval`: scores of students and teachers, by harnesses that others use as well."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ekd_nemo.cli.common import table
from ekd_nemo.evals.account import marked
from ekd_nemo.evals.lm import STORE, evaluate
from ekd_nemo.evals.request import LmSettings
from ekd_nemo.evals.results import read_eval_dir
from ekd_nemo.evals.table import score_rows
from ekd_nemo.evals.target import Subject, find_split, find_subject, find_targets
from ekd_nemo.evals.taskset import gather_tasks
from ekd_nemo.launch.plan import UUIDS_VARIABLE
from ekd_nemo.launch.sampling import sampling
from ekd_nemo.records.identity import read_identity

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Evaluate students and teachers."
)


@app.callback()
def _group() -> None:
    """Evaluate students and teachers."""


@app.command()
def lm(
    target: Annotated[Path, typer.Argument(help="A run directory, or a Hugging Face folder.")],
    teacher: Annotated[
        Path | None, typer.Option(help="Teacher folder; by default the recipe's.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Tasks or groups, with commas; by default the recipe's."),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="A folder of lm-eval task files.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items per task, from the first.")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(min=0, help="Examples in the prompt; by default the task's."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences at once.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(help="float32, bfloat16 or auto: float32 on a CPU, bfloat16 on a GPU."),
    ] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(help="Shards whose held-out side the built-in tasks take."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; by default the run's eval/."),
    ] = None,
    chat_template: Annotated[
        bool,
        typer.Option("--chat-template", help="Put prompts into the chat template."),
    ] = False,
    student_only: Annotated[
        bool, typer.Option("--student-only", help="Leave the teacher out.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Run also what is stored.")] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with a model."),
    ] = False,
) -> None:
    """Run lm-eval on a run's student and teacher, or on one model."""
    _one_of("--device", device, ("cpu", "cuda", "auto"))
    _one_of("--dtype", dtype, ("float32", "bfloat16", "auto"))
    subject = find_subject(target)
    wanted = subject.evaluation
    names = (
        tuple(name.strip() for name in tasks.split(",") if name.strip()) if tasks else wanted.tasks
    )
    folder = include_path or (Path(wanted.include_path) if wanted.include_path else None)
    settings = LmSettings(
        tasks=names,
        limit=limit or wanted.limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size or wanted.batch_size,
        dtype=dtype,
        device=device,
        apply_chat_template=chat_template,
        trust_remote_code=trust_remote_code,
    )
    eval_dir = subject.eval_dir(out)
    targets = find_targets(subject, teacher, student_only=student_only, eval_dir=eval_dir)
    task_set = gather_tasks(names, folder, find_split(subject, names, data), STORE / "tasks")
    with _metered(subject):
        evaluate(targets, settings, task_set, subject.log(eval_dir), typer.echo, again=again)
    typer.echo(table(score_rows(read_eval_dir(eval_dir.path))))
    typer.echo(f"results: {eval_dir.path}")


@contextmanager
def _metered(subject: Subject) -> Generator[None, None, None]:
    """Evaluate under the launcher's sampler if it started this, else under one of our own; outside a run under none."""
    if subject.run is None or subject.recipe is None:
        yield
        return
    attempt = read_identity(subject.run).attempts[-1].attempt
    measured = os.environ.get(UUIDS_VARIABLE)
    if measured is not None:
        with marked(subject.run, [uuid for uuid in measured.split(",") if uuid], attempt):
            yield
        return
    with sampling(subject.run, subject.recipe.energy) as uuids, marked(subject.run, uuids, attempt):
        yield


def _one_of(option: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise typer.BadParameter(f"{value!r}; accepted: {', '.join(accepted)}", param_hint=option)
