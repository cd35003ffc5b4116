"""What `ekd eval lm` does with its options; apart from them, so that `--help` loads none of it."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer

from ekd_nemo.cli.common import table
from ekd_nemo.config.recipe import EvalLm
from ekd_nemo.errors import UserError
from ekd_nemo.evals.account import marked
from ekd_nemo.evals.harness_process import harness_version
from ekd_nemo.evals.harnesses import LM
from ekd_nemo.evals.lm import STORE, Engine, evaluate
from ekd_nemo.evals.request import LmSettings
from ekd_nemo.evals.results import read_eval_dir
from ekd_nemo.evals.suites import SUITES, expand, shots_of
from ekd_nemo.evals.table import score_rows
from ekd_nemo.evals.target import Beside, Subject, find_split, find_subject, find_targets
from ekd_nemo.evals.taskset import BUILT_IN, gather_tasks
from ekd_nemo.launch.plan import UUIDS_VARIABLE, ranks_argv
from ekd_nemo.launch.sampling import sampling
from ekd_nemo.records.identity import read_identity


@dataclass(frozen=True, kw_only=True)
class LmOptions:
    """The command's options; None leaves the choice to the recipe, or to the task."""

    target: Path
    teacher: Path | None
    base: Path | None
    tasks: str | None
    include_path: Path | None  # of lighteval: the file of custom tasks
    limit: int | None
    num_fewshot: int | None
    batch_size: str | None
    device: str
    dtype: str
    data: Path | None
    out: Path | None
    chat_template: bool
    student_only: bool
    again: bool
    trust_remote_code: bool
    ranks: int = 1
    task_data: Path | None = None

    @property
    def beside(self) -> Beside:
        """The models that were asked for beside the target."""
        return Beside(teacher=self.teacher, base=self.base, student_only=self.student_only)

    def check(self) -> None:
        """Raise UserError for a value that is none of those accepted."""
        _one_of("--device", self.device, ("cpu", "cuda", "auto"))
        _one_of("--dtype", self.dtype, ("float32", "bfloat16", "auto"))

    def names(self, wanted: EvalLm) -> tuple[str, ...]:
        """The tasks asked for, each once."""
        given = wanted.tasks if self.tasks is None else tuple(self.tasks.split(","))
        names = tuple(dict.fromkeys(name.strip() for name in given if name.strip()))
        if not names:
            raise UserError(
                "--tasks: no task named; give names with commas between them, or a suite: "
                + ", ".join(SUITES)
            )
        return names

    def settings(self, names: tuple[str, ...], wanted: EvalLm) -> LmSettings:
        """What both models are asked."""
        return LmSettings(
            tasks=expand(names),
            limit=self.limit or wanted.limit,
            num_fewshot=self.num_fewshot,
            shots=shots_of(names),
            batch_size=self._batch_size() or wanted.batch_size,
            dtype=self.dtype,
            device=self.device,
            apply_chat_template=self.chat_template,
            trust_remote_code=self.trust_remote_code,
        )

    def _batch_size(self) -> int | Literal["auto"] | None:
        if self.batch_size is None or self.batch_size == "auto":
            return self.batch_size
        if self.batch_size.isdecimal() and int(self.batch_size) > 0:
            return int(self.batch_size)
        raise UserError(
            f"--batch-size {self.batch_size}: accepted are whole numbers above 0, and auto"
        )


def run_lm(options: LmOptions) -> None:
    """Check everything, evaluate what is not stored, print the scores."""
    options.check()
    version = harness_version()
    subject = find_subject(options.target, typer.echo)
    wanted = subject.evaluation
    settings = options.settings(options.names(wanted), wanted)
    names = settings.tasks
    folder = options.include_path or (Path(wanted.include_path) if wanted.include_path else None)
    eval_dir = subject.eval_dir(options.out)
    targets = find_targets(subject, options.beside, eval_dir=eval_dir, tell=typer.echo)
    split = find_split(subject, names, options.data)
    tasks = gather_tasks(names, folder, split, STORE / "tasks", options.task_data)
    if set(names) & set(BUILT_IN):
        typer.echo(f"held-out text: {split.origin}, seed {split.seed}, fraction {split.fraction}")
    evaluate(
        targets,
        settings,
        tasks,
        subject.log(eval_dir),
        typer.echo,
        engine=Engine(LM, version, ranks_argv(("ekd_nemo.worker", "eval"), options.ranks)),
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
