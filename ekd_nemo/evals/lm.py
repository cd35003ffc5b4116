"""`ekd eval lm`: what has to be run, what is there already, and where each result goes."""

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ekd_nemo.errors import RunError
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.harness_process import Event, harness_version, run_harness
from ekd_nemo.evals.harnesses import LM, Harness
from ekd_nemo.evals.model_folder import ModelFolder
from ekd_nemo.evals.request import Job, LmSettings, Request, canonical_hash
from ekd_nemo.evals.sidecar import EvaluatedModel, Sidecar
from ekd_nemo.evals.storing import storing
from ekd_nemo.evals.taskset import TaskSet

STORE: Final = Path("assets/eval")  # task data, and results that several runs share
SHARED_ROLE: Final = "model"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """One model to evaluate.

    `home`: where its results are looked for and placed, under `home_role`.
    `copies_to`: a run that gets a copy under `role`; None: the home is the place.
    """

    role: str
    model: ModelFolder
    home: EvalDir
    copies_to: EvalDir | None = None

    @property
    def home_role(self) -> str:
        """Its role in the home: a model that several runs share has none of its own."""
        return self.role if self.copies_to is None else SHARED_ROLE

    @property
    def final(self) -> EvalDir:
        """Where the caller reads its results."""
        return self.copies_to or self.home


@dataclass(frozen=True)
class Engine:
    """A harness as it is installed: its version, and the command that takes a request file."""

    harness: Harness
    version: str
    argv: tuple[str, ...]


def lm_eval() -> Engine:
    """lm-eval in the worker process, in this environment.

    Raises:
        MissingExtraError: if it is not installed.
    """
    return Engine(LM, harness_version(), (sys.executable, "-m", "ekd_nemo.worker", "eval"))


@dataclass(frozen=True)
class Plan:
    """Targets and settings with everything that names a result beforehand."""

    targets: tuple[Target, ...]
    settings: LmSettings
    tasks: TaskSet
    engine: Engine

    def identity(self, task: str) -> dict[str, Any]:
        """What decides the scores of a task, known beforehand."""
        return self.settings.identity(
            task, self.tasks.sha256[task], self.engine.harness.name, self.engine.version
        )

    def request_hash(self, target: Target, task: str) -> str:
        """Names a result of this target's tokenizer and these settings."""
        return canonical_hash({**self.identity(task), "tokenizer": target.model.tokenizer_sha256})

    def missing(self, target: Target) -> tuple[str, ...]:
        """The tasks of which no result of these weights under these settings is stored."""
        return tuple(
            task
            for task in self.tasks.names
            if target.home.find(
                target.home_role,
                task,
                target.model.weights_sha256,
                self.request_hash(target, task),
            )
            is None
        )


def evaluate(
    targets: Sequence[Target],
    settings: LmSettings,
    tasks: TaskSet,
    log: Path,
    tell: Tell,
    *,
    engine: Engine | None = None,
    again: bool = False,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Evaluate what is not stored yet, in one worker process, and leave every result in its place.

    Args:
        targets: the models.
        settings: shared by all of them.
        tasks: from `gather_tasks`.
        log: the harness's output.
        tell: takes lines for the user.
        engine: the harness; None: lm-eval in this environment.
        again: run also what is stored.
        around: made and entered while the harness runs, e.g. to meter it.

    Raises:
        UserError: for tasks that do not exist; nothing has been changed.
        RunError: if the harness fails or a result cannot be stored; results before it are kept.
    """
    plan = Plan(tuple(targets), settings, tasks, engine or lm_eval())
    todo = {t.role: tasks.names if again else plan.missing(t) for t in targets}
    for target in targets:
        for task in tasks.names:
            if task not in todo[target.role]:
                tell(f"{target.role}: {task}: stored for these weights and settings, not run again")
    with storing("results"):
        for target in targets:
            _hand_over(
                plan, target, [task for task in tasks.names if task not in todo[target.role]]
            )
        if any(todo.values()):
            with around():
                _run(plan, todo, log, tell)


def _run(plan: Plan, todo: Mapping[str, tuple[str, ...]], log: Path, tell: Tell) -> None:
    busy = [target for target in plan.targets if todo[target.role]]
    busy[0].final.path.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".lm-", dir=busy[0].final.path))
    try:
        jobs = [
            Job(
                name=t.role,
                model=str(t.model.path),
                tasks=todo[t.role],
                out=str(scratch / t.role),
            )
            for t in busy
        ]
        request = Request(
            settings=plan.settings,
            include_paths=tuple(map(str, plan.tasks.include_paths)),
            include_defaults=plan.tasks.include_defaults,
            jobs=tuple(jobs),
            custom_tasks=plan.tasks.custom_tasks,
            data=plan.tasks.data,
            cache=str(scratch / "cache"),
        )
        (scratch / "request.json").write_text(request.model_dump_json(indent=2))
        receive = _Receiver(plan, tell)
        offline = scratch / "datasets" if plan.tasks.local else None
        run_harness(plan.engine.argv, scratch / "request.json", log, receive, offline=offline)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Receiver:
    """Places each result as soon as the worker reports it."""

    def __init__(self, plan: Plan, tell: Tell) -> None:
        self._plan = plan
        self._tell = tell
        self._targets = {target.role: target for target in plan.targets}
        self._began_s = time.monotonic()

    def __call__(self, event: Event) -> None:
        match event["event"]:
            case "model":
                self._tell(f"{event['job']}: loading {event['model']}")
            case "task":
                self._tell(f"{event['job']}: {event['task']} is running")
                self._began_s = time.monotonic()
            case "done":
                self._done(self._targets[event["job"]], event)
            case other:
                raise AssertionError(f"unknown event {other}")

    def _done(self, target: Target, event: Event) -> None:
        task = event["task"]
        duration_s = time.monotonic() - self._began_s
        settings = Sidecar(
            role=target.home_role,
            task=task,
            harness=self._plan.engine.harness.name,
            harness_version=self._plan.engine.version,
            request=self._plan.identity(task),
            request_hash=self._plan.request_hash(target, task),
            model=EvaluatedModel(
                path=target.model.shown,
                weights_sha256=target.model.weights_sha256,
                tokenizer_sha256=target.model.tokenizer_sha256,
            ),
            batch_size=event.get("batch_size") or self._plan.settings.batch_size,
            device=event["device"],
            ranks=event.get("ranks", 1),
            trust_remote_code=self._plan.settings.trust_remote_code,
            duration_s=round(duration_s, 3),
        )
        target.home.place(Path(event["out"]), settings)
        if target.copies_to is not None:
            # From what this harness left: another evaluation of the same model may be storing its own by now.
            origin = str(target.home.results(target.home_role, task))
            update = {"role": target.role, "copied_from": origin}
            target.copies_to.place(Path(event["out"]), settings.model_copy(update=update))
        self._tell(f"{target.role}: {task} done in {duration_s:.0f} s")


def _hand_over(plan: Plan, target: Target, tasks: Sequence[str]) -> None:
    """Copy a shared model's stored results into the run that asked for them.

    Raises: RunError if one has been replaced since it was found.
    """
    if target.copies_to is None:
        return
    for task in tasks:
        key = (target.model.weights_sha256, plan.request_hash(target, task))
        if target.copies_to.find(target.role, task, *key) is None:
            stored = target.home.find(SHARED_ROLE, task, *key)
            if stored is None:
                raise RunError(
                    f"{target.role}: {task}: another evaluation of {target.model.shown} is replacing its result in "
                    f"{target.home.path}; the same command again goes on"
                )
            target.copies_to.copy(stored, target.role, target.home)
