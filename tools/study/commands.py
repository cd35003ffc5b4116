"""The `ekd` commands that a run of the study takes, and whether each is done, as the records show."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.records.ept import read_ept
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.cache_manifest import MANIFEST
from tools.study.plan import BASELINE, LIVE, Plan, Run, runs_of

CACHE, TRAINING, SCORES, BENCHMARK = KINDS = ("cache", "training", "scores", "energy per token")
EKD = (sys.executable, "-m", "ekd_nemo")


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        what: for the reader of the console.
        argv: the command line.
        done: whether the records show its result already.
    """

    what: str
    argv: tuple[str, ...]
    done: bool


@dataclass(frozen=True)
class Study:
    """A plan and where it runs.

    Attributes:
        methods: name of each method to its recipe.
        runs: the folder of its run directories.
        task_data: a folder of bbh/*.json and gsm8k/*.jsonl; None: the tasks that need it are left out.
    """

    methods: dict[str, str]
    plan: Plan
    runs: Path
    task_data: Path | None = None

    @property
    def shared(self) -> Path:
        """The folder of the run that makes the cache, which plans share."""
        return self.runs.parent / "cache"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of every run."""
        more = self.plan.evaluation.task_data_tasks if self.task_data else ()
        return (*self.plan.evaluation.tasks, *more)

    def all_commands(self) -> Iterator[tuple[str, Command]]:
        """Every command with the name of its run, in the order of work."""
        yield from ((CACHE, command) for command in self.before())
        for run in runs_of(self.methods, self.plan):
            yield from ((run.run_id, command) for command in self.commands(run))

    def before(self) -> Iterator[Command]:
        """What all runs share: the cache."""
        cache = self.plan.cache
        if cache is None:
            return
        settings = self._cache_settings()
        argv = (*EKD, "cache", "build", self.methods[cache.made_by], "--runs", str(self.shared))
        kind = ("teacher.cache.build.kind=hidden", f"teacher.cache.build.storage={cache.storage}")
        done = (Path(cache.path) / MANIFEST).is_file()
        yield Command(CACHE, (*argv, *_set((*settings, *kind))), done)

    def commands(self, run: Run) -> Iterator[Command]:
        """Training with export, then scores, then the energy of inference."""
        folder = RunDir(self.runs / run.run_id)
        yield Command(TRAINING, self._launch(run), (folder.hf / "config.json").is_file())
        yield Command(SCORES, self._scores(folder), self._is_scored(folder))
        if self.plan.ept is not None:
            yield Command(BENCHMARK, self._benchmark(folder), _is_benchmarked(folder))

    def report(self, out: Path) -> Command:
        """The page of figures of what is finished; nothing to do where nothing is."""
        argv = (*EKD, "report", "build", str(self.runs), "--out", str(out))
        return Command("report", argv, not any(self.runs.glob("*/hf/config.json")))

    def _launch(self, run: Run) -> tuple[str, ...]:
        settings = [*self.plan.set, f"seed={run.seed}", "evaluation.lm=null"]
        if self.plan.cache and run.label != BASELINE and not run.label.endswith(LIVE):
            settings += self._cache_settings()
        variant = self.plan.variants.get(run.label)
        recipe = self.methods[run.method if variant is None else variant.method]
        settings += () if variant is None else variant.set
        where = ("--local", "--runs", str(self.runs), "--run-id", run.run_id)
        return (*EKD, "recipe", "launch", recipe, *where, *_set(settings))

    def _cache_settings(self) -> tuple[str, ...]:
        assert self.plan.cache is not None
        return ("teacher.placement=cached", f"teacher.cache.path={self.plan.cache.path}")

    def _scores(self, run: RunDir) -> tuple[str, ...]:
        asked = self.plan.evaluation
        options = ["--tasks", ",".join(self.tasks), "--limit", str(asked.limit)]
        options += ["--batch-size", str(asked.batch_size)]
        if self.task_data:
            options += ["--task-data", str(self.task_data)]
        return (*EKD, "eval", "lm", str(run.path), *options)

    def _is_scored(self, run: RunDir) -> bool:
        there = EvalDir(run.eval)
        roles = ("student", "teacher")
        return all(there.settings(role, task).is_file() for role in roles for task in self.tasks)

    def _benchmark(self, run: RunDir) -> tuple[str, ...]:
        ept = self.plan.ept
        assert ept is not None
        options = {
            "--batch-sizes": ept.batch_sizes,
            "--input-tokens": ept.input_tokens,
            "--new-tokens": ept.new_tokens,
            "--requests": ept.requests,
            "--repeats": ept.repeats,
        }
        pairs = [str(part) for option in options.items() for part in option]
        return (*EKD, "eval", "ept", str(run.path), *pairs, "--no-natural")


def _is_benchmarked(run: RunDir) -> bool:
    return {entry.role for entry in read_ept(run.ept_json).entries} >= {"student", "teacher"}


def _set(settings: tuple[str, ...] | list[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]
