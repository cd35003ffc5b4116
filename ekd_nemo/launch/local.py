"""A launch on this machine: check everything, prepare, then run the steps that are not finished yet."""

import shlex
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ekd_nemo.config.resolve import ResolvedRecipe
from ekd_nemo.errors import EXIT_OK, EXIT_SAVED, EXIT_USER, RunError, UserError
from ekd_nemo.launch.checks import check_extras, check_meter, check_plan, check_settings
from ekd_nemo.launch.failure import reason
from ekd_nemo.launch.history import note_finished, pending
from ekd_nemo.launch.identity import choose_run, launch_folder, only_launch
from ekd_nemo.launch.plan import (
    ATTEMPT_VARIABLE,
    DATA_STEP,
    UUIDS_VARIABLE,
    Plan,
    Step,
    plan_launch,
)
from ekd_nemo.launch.preparing import adopt, metered
from ekd_nemo.launch.processes import Ended, run_process
from ekd_nemo.launch.sampling import sampling
from ekd_nemo.launch.signals import StopWatch
from ekd_nemo.launch.slurm_run import begin
from ekd_nemo.records.atomic import write_text

EXIT_INTERRUPTED = 130
# What a process that was asked to stop before it listens ends with: the signal itself.
_UNHEARD = {-signal.SIGTERM, -signal.SIGUSR1, 128 + signal.SIGTERM, 128 + signal.SIGUSR1}

Say = Callable[[str], None]


class StoppedError(Exception):
    """A stop signal has ended a step; `saved` if training has written its state."""

    def __init__(self, saved: bool) -> None:
        """Note whether anything was saved."""
        super().__init__()
        self.saved = saved


def plan_local(
    resolved: ResolvedRecipe,
    *,
    runs: Path,
    run_id: str | None = None,
    new: bool = False,
    nproc: int | None = None,
) -> Plan:
    """Choose the run and lay out its steps; nothing is written.

    Raises: UserError of some kind, in one line.
    """
    check_settings(resolved)
    return plan_launch(resolved, choose_run(resolved.recipe, runs, run_id, new), nproc)


def check_local(plan: Plan, ask_hub: bool) -> None:
    """Everything that can be known to be wrong beforehand; `ask_hub` as in `check_plan`.

    Raises: UserError of some kind, in one line.
    """
    check_plan(plan, ask_hub)
    check_extras(plan.recipe)


def launch_local(plan: Plan, say: Say, resume: str) -> int:
    """Run what is not finished yet.

    Args:
        plan: from `plan_local`.
        say: takes lines for the reader of the console.
        resume: the command that goes on with this run, told when it is stopped.
    Returns: 0; EXIT_SAVED after SIGTERM or SIGUSR1, 130 after Ctrl-C: the same launch goes on from there.
    Raises: UserError or RunError, in one line, with the log of the step that failed.
    """
    steps = pending(plan.run, plan.steps)
    if not steps:
        say(f"{plan.run.run_id}: everything is done already")
        say(closing_line(plan))
        return EXIT_OK
    check_local(plan, ask_hub=True)
    check_meter(plan.resolved)
    with only_launch(plan.run) as lock, StopWatch() as watch:
        launch = _Launch(plan, watch, lock, say, len(plan.preparation) + len(steps))
        try:
            launch.prepare()
            launch.run(steps)
        except StoppedError as stopped:
            return _stopped(watch, say, stopped, resume)
    say(closing_line(plan))
    return EXIT_OK


def closing_line(plan: Plan) -> str:
    """Where things are."""
    run, evaluated = plan.run, plan.recipe.evaluation.lm is not None
    scores = f", scores {run.eval}" if evaluated else ""
    return f"student {run.hf}{scores}, figures: ekd metrics summarise {shlex.quote(str(run.path))}"


def _stopped(watch: StopWatch, say: Say, stopped: StoppedError, resume: str) -> int:
    name = watch.first.name if watch.first else "a signal to the ranks"
    state = "the state is saved" if stopped.saved else "what was finished is kept"
    say(f"stopped by {name}; {state}; to go on: {resume}")
    return EXIT_INTERRUPTED if watch.first is signal.SIGINT else EXIT_SAVED


@dataclass
class _Launch:
    """One launch under its lock: where its steps' logs go, and the captions counted."""

    plan: Plan
    watch: StopWatch
    lock: int
    say: Say
    count: int
    number: int = 0

    def prepare(self) -> None:
        """What is done before the run exists."""
        folder = launch_folder(self.plan.run)
        run, energy = self.plan.run, self.plan.recipe.energy
        for (
            step
        ) in self.plan.preparation:  # a cache is made by a run of its own, with its own sampler
            is_data = step.name == DATA_STEP
            with metered(run, energy, folder) if is_data else nullcontext():
                self._run(step, folder / f"{run.run_id}.{step.name}.log", {})

    def run(self, steps: Sequence[Step]) -> None:
        """Begin an attempt, and do the steps beside a sampler."""
        attempt = write_run(self.plan)
        run = self.plan.run
        adopt(run, launch_folder(run), attempt)
        with sampling(run, self.plan.recipe.energy) as uuids:
            environment = {ATTEMPT_VARIABLE: str(attempt), UUIDS_VARIABLE: ",".join(uuids)}
            for step in steps:
                ended = self._run(step, run.logs / f"{step.name}.log", environment)
                note_finished(run, step, attempt, ended.duration_s)

    def _run(self, step: Step, log: Path, environment: dict[str, str]) -> Ended:
        if self.watch.first is not None:
            raise StoppedError(saved=False)
        self.number += 1
        self.say(f"[{self.number}/{self.count}] {step.caption}")
        for stale in step.replaces:
            if stale.exists():
                shutil.rmtree(stale)
        ended = run_process(
            step, log, self.watch, environment, keep_open=(self.lock,) if step.ranks else ()
        )
        _refuse_failure(step, ended, log, asked=self.watch.first is not None)
        self.say(f"      done in {_duration(ended.duration_s)}")
        return ended


def _refuse_failure(step: Step, ended: Ended, log: Path, asked: bool) -> None:
    if ended.code == EXIT_OK:
        return
    if step.ranks and ended.code == EXIT_SAVED:
        raise StoppedError(saved=True)
    if asked and (ended.code in _UNHEARD or not step.ranks):
        raise StoppedError(saved=False)
    message = f"{step.name} failed: {reason(ended.code, ended.text)} (log: {log})"
    raise UserError(message) if ended.code == EXIT_USER else RunError(message)


def _duration(duration_s: float) -> str:
    return f"{duration_s:.0f} s" if duration_s < 100 else f"{duration_s / 60:.1f} min"


def write_run(plan: Plan) -> int:
    """Write `recipe.yaml` and `run.json`, or add an attempt to them; returns the attempt's number.

    Raises: RunDirError if the directory holds another experiment.
    """
    run = plan.run
    run.path.mkdir(parents=True, exist_ok=True)
    if not run.recipe_yaml.is_file():
        write_text(run.recipe_yaml, plan.resolved.text)
    return begin(run, plan.recipe, plan.world_size)
