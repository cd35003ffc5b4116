"""What `ekd eval lm` does with its options; apart from them, so that `--help` loads none of it."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from ekd_nemo.cli.common import table
from ekd_nemo.config.recipe import EvalLm
from ekd_nemo.errors import UserError
from ekd_nemo.evals.account import marked
from ekd_nemo.evals.lm import STORE, evaluate
from ekd_nemo.evals.request import LmSettings
from ekd_nemo.evals.results import read_eval_dir
from ekd_nemo.evals.table import score_rows
from ekd_nemo.evals.target import Subject, find_split, find_subject, find_targets
from ekd_nemo.evals.taskset import BUILT_IN, gather_tasks
from ekd_nemo.launch.plan import UUIDS_VARIABLE
from ekd_nemo.launch.sampling import sampling
from ekd_nemo.records.identity import read_identity


@dataclass(frozen=True, kw_only=True)
class LmOptions:
    """The command's options; None leaves the choice to the recipe, or to the task."""

    target: Path
    teacher: Path | None
    tasks: str | None
    include_path: Path | None  # of lighteval: the file of custom tasks
    limit: int | None
    num_fewshot: int | None
    batch_size: int | None
    device: str
    dtype: str
    data: Path | None
    out: Path | None
    chat_template: bool
    student_only: bool
    again: bool
    trust_remote_code: bool

    def check(self) -> None:
        """Raise UserError for a value that is none of those accepted."""
        _one_of("--device", self.device, ("cpu", "cuda", "auto"))
        _one_of("--dtype", self.dtype, ("float32", "bfloat16", "auto"))

    def names(self, wanted: EvalLm) -> tuple[str, ...]:
        """The tasks asked for, each once."""
        given = wanted.tasks if self.tasks is None else tuple(self.tasks.split(","))
        names = tuple(dict.fromkeys(name.strip() for name in given if name.strip()))
        if not names:
            raise UserError("--tasks: no task named; give names with commas between them")
        return names

    def settings(self, names: tuple[str, ...], wanted: EvalLm) -> LmSettings:
        """What both models are asked."""
        return LmSettings(
            tasks=names,
            limit=self.limit or wanted.limit,
            num_fewshot=self.num_fewshot,
            batch_size=self.batch_size or wanted.batch_size,
            dtype=self.dtype,
            device=self.device,
            apply_chat_template=self.chat_template,
            trust_remote_code=self.trust_remote_code,
        )


def run_lm(options: LmOptions) -> None:
    """Check everything, evaluate what is not stored, print the scores."""
    options.check()
    subject = find_subject(options.target)
    wanted = subject.evaluation
    names = options.names(wanted)
    folder = options.include_path or (Path(wanted.include_path) if wanted.include_path else None)
    eval_dir = subject.eval_dir(options.out)
    targets = find_targets(
        subject, options.teacher, student_only=options.student_only, eval_dir=eval_dir
    )
    split = find_split(subject, names, options.data)
    tasks = gather_tasks(names, folder, split, STORE / "tasks")
    if set(names) & set(BUILT_IN):
        typer.echo(f"held-out text: {split.origin}, seed {split.seed}, fraction {split.fraction}")
    evaluate(
        targets,
        options.settings(names, wanted),
        tasks,
        subject.log(eval_dir),
        typer.echo,
        again=options.again,
        around=lambda: metered(subject),
    )
    typer.echo(table(score_rows(read_eval_dir(eval_dir.path))))
    typer.echo(f"results: {eval_dir.path}")


@contextmanager
def metered(subject: Subject) -> Generator[None, None, None]:
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
        raise UserError(f"{option} {value}: accepted are {', '.join(accepted)}")
