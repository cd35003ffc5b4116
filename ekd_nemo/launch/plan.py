"""What a launch on this machine does, as data: steps with their argv, environment and products. Nothing is run here."""

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ekd_nemo.config.placement import student_ranks, teacher_parallel, teacher_ranks
from ekd_nemo.config.recipe import EvalEpt, Recipe
from ekd_nemo.config.resolve import ResolvedRecipe
from ekd_nemo.errors import ConfigError, LayoutError
from ekd_nemo.launch.sampling import sampler_of
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.cache_manifest import MANIFEST as CACHE_MANIFEST
from ekd_nemo.sources.manifest import shards_ready

ATTEMPT_VARIABLE = "EKD_ATTEMPT"
UUIDS_VARIABLE = "EKD_DEVICE_UUIDS"
THREADS_VARIABLE = "OMP_NUM_THREADS"
DATA_STEP = "data"  # the step that builds shards


@dataclass(frozen=True)
class Step:
    """One process of a launch.

    Attributes:
        name: short, also the name of its log.
        caption: what it does, for the reader of the console.
        argv: the command; never a shell's text.
        env: variables set beside those of the launcher.
        products: what exists once it has finished.
        replaces: folders of an earlier, unfinished try that are removed before it starts.
        ranks: training ranks below it; 0 for a step that is not training. Ranks save when asked to stop.
    """

    name: str
    caption: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    products: tuple[Path, ...] = ()
    replaces: tuple[Path, ...] = ()
    ranks: int = 0

    def command(self) -> str:
        """The step as it could be typed into a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*variables, shlex.join(self.argv)])


@dataclass(frozen=True)
class Plan:
    """A launch: the run directory, what is done before it exists, and the run's own steps."""

    resolved: ResolvedRecipe
    run: RunDir
    world_size: int
    preparation: tuple[Step, ...]
    steps: tuple[Step, ...]

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.resolved.recipe

    def describe(self) -> str:
        """The whole plan as text, for `--dry-run`."""
        lines = [
            f"run {self.run.run_id}: {self.recipe.method} on {self.world_size} rank(s)",
            "",
            "would write:",
        ]
        lines += [
            f"  {path}"
            for path in (self.run.run_json, self.run.recipe_yaml, self.run.telemetry, self.run.logs)
        ]
        lines += [
            f"  {path}" for step in (*self.preparation, *self.steps) for path in step.products
        ]
        lines += ["", "would run:"]
        for step in (*self.preparation, *self.steps):
            lines += [f"  # {step.caption}", f"  {step.command()}"]
        lines += ["  # beside the run's steps: the sampler of the energy meters"]
        lines += [f"  {shlex.join(sampler_of(self.run, self.recipe.energy).command())}"]
        return "\n".join(lines)


def plan_launch(resolved: ResolvedRecipe, run: RunDir, nproc: int | None = None) -> Plan:
    """Lay out the steps of a launch on this machine.

    Args:
        resolved: the recipe.
        run: where the run is, or will be.
        nproc: ranks to start; None starts one copy of the student.
    Raises: ConfigError for paths that hold control characters; LayoutError if `nproc` does not fit;
        DataError if the shards' folder holds something else.
    """
    recipe = resolved.recipe
    _refuse_control_characters(
        {"--runs": str(run.path), resolved.place("data.path"): recipe.data.path}
    )
    world_size = world_size_of(recipe, nproc)
    steps = [_train_step(recipe, run, world_size), _export_step(recipe, run)]
    if recipe.evaluation.lm is not None:
        steps.append(_eval_step(recipe, run))
    if recipe.evaluation.ept is not None:
        steps.append(_ept_step(recipe, recipe.evaluation.ept, run))
    preparation = (*_data_steps(recipe), *_cache_steps(recipe, run))
    return Plan(resolved, run, world_size, preparation, tuple(steps))


def world_size_of(recipe: Recipe, nproc: int | None) -> int:
    """Ranks to start: those of the student's copies, and a split teacher's own.

    Raises: LayoutError unless they hold whole copies of both models, and the batches divide among the student's.
    """
    parallel, train = recipe.student.parallel, recipe.train
    copy, apart = parallel.tensor * parallel.pipeline, teacher_ranks(recipe)
    ranks = _least_ranks(recipe) if nproc is None else nproc
    if (ranks - apart) % copy or ranks <= apart:
        beside = f" beside the teacher's {apart}" if apart else ""
        raise LayoutError(
            f"--nproc {ranks}: one copy of the student takes tensor {parallel.tensor} x pipeline {parallel.pipeline} "
            f"= {copy} ranks{beside}; accepted: "
            + (f"{apart} and a multiple of {copy}" if apart else f"multiples of {copy}")
        )
    try:
        student_ranks(recipe, ranks)
    except LayoutError as error:
        raise LayoutError(f"--nproc {ranks}: {error}") from error
    copies = (ranks - apart) // copy
    if train.global_batch_size % (train.micro_batch_size * copies):
        raise LayoutError(
            f"--nproc {ranks}: {copies} copies of the student with train.micro_batch_size "
            f"{train.micro_batch_size} do not divide train.global_batch_size {train.global_batch_size}; "
            f"accepted: multiples of {train.micro_batch_size * copies}"
        )
    if train.val_samples < train.micro_batch_size * copies:
        raise LayoutError(
            f"train.val_samples {train.val_samples} leaves no whole microbatch for each of {copies} "
            f"copies of the student; accepted: {train.micro_batch_size * copies} or more"
        )
    return ranks


def _least_ranks(recipe: Recipe) -> int:
    """One copy of the student, or what a shared teacher in another layout stands on, and a split teacher's own."""
    student, teacher = recipe.student.parallel, teacher_parallel(recipe)
    copy, apart = student.tensor * student.pipeline, teacher_ranks(recipe)
    if teacher is None or apart:
        return copy + apart
    return math.lcm(copy, teacher.tensor * teacher.pipeline)


def _refuse_control_characters(texts: Mapping[str, str]) -> None:
    for where, text in texts.items():
        if not text.isprintable():
            raise ConfigError(
                f"{where}: {text!r} holds a line break or control character; a plain path is accepted"
            )


def argument(path: Path) -> str:
    """A path as an argument: one that begins with a dash is not taken for an option."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def _worker(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "ekd_nemo.worker", *words)


def _data_steps(recipe: Recipe) -> tuple[Step, ...]:
    """The build of the shards, unless they are there."""
    build, folder = recipe.data.build, Path(recipe.data.path)
    if build is None or shards_ready(folder, build):
        return ()
    argv = _worker(
        "data", "build", "--settings", build.model_dump_json(), "--out", argument(folder)
    )
    return (
        Step(
            DATA_STEP,
            f"building the shards in {folder}",
            argv,
            products=(folder / "manifest.json",),
        ),
    )


def _cache_steps(recipe: Recipe, run: RunDir) -> tuple[Step, ...]:
    """The build of the teacher's cache, a run of its own beside this one, unless the cache is there."""
    use = None if recipe.teacher is None else recipe.teacher.cache
    if use is None or use.build is None or (Path(use.path) / CACHE_MANIFEST).is_file():
        return ()
    words = ("--json", recipe.model_dump_json(), "--runs", argument(run.path.parent))
    return (
        Step(
            "cache",
            f"building the teacher's cache in {use.path}",
            (sys.executable, "-m", "ekd_nemo", "cache", "build", *words),
            products=(Path(use.path) / CACHE_MANIFEST,),
        ),
    )


def _train_step(recipe: Recipe, run: RunDir, world_size: int) -> Step:
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    return Step(
        "train",
        f"training {recipe.train.steps} steps on {ranks}",
        ranks_argv(("ekd_nemo.worker", "train", "--run", argument(run.path)), world_size),
        env={THREADS_VARIABLE: str(max(1, len(os.sched_getaffinity(0)) // world_size))},
        products=(last_checkpoint(recipe, run) / "weights",),
        ranks=world_size,
    )


def ranks_argv(module: Sequence[str], world_size: int) -> tuple[str, ...]:
    """A Python module and its arguments as one process, or as several ranks below torchrun.

    The rendezvous stays on the loopback device and picks a free port by itself.
    """
    if world_size == 1:
        return (sys.executable, "-m", *module)
    here = ("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(world_size))
    # Without the dashes torchrun takes the module's options for abbreviations of its own.
    return (sys.executable, "-m", "torch.distributed.run", *here, "-m", "--", *module)


def _export_step(recipe: Recipe, run: RunDir) -> Step:
    """The export of the last checkpoint, with the tokenizer of the model that the student comes from.

    A student at random comes from a config.json alone: its tokenizer is the teacher's.
    """
    init, teacher = recipe.student.init, recipe.teacher
    like = init.path or (teacher.path if teacher else "")
    words = [argument(last_checkpoint(recipe, run)), argument(run.hf), f"--like={like}"]
    if init.source == "random" and teacher is not None:
        words.append(f"--tokenizer={teacher.path}")
    argv = _worker("convert", "export", *words)
    products = (run.hf / "config.json",)
    return Step(
        "export", f"exporting the student to {run.hf}", argv, products=products, replaces=(run.hf,)
    )


def last_checkpoint(recipe: Recipe, run: RunDir) -> Path:
    """Where training leaves its last checkpoint."""
    return run.checkpoints / f"step_{recipe.train.steps:07d}"


def _eval_step(recipe: Recipe, run: RunDir) -> Step:
    who = (
        "student and teacher"
        if recipe.teacher is not None and recipe.evaluation.teacher
        else "student"
    )
    argv = (sys.executable, "-m", "ekd_nemo", "eval", "lm", argument(run.path))
    return Step("eval", f"evaluating {who}", argv, products=(run.eval,))


def _ept_step(recipe: Recipe, ept: EvalEpt, run: RunDir) -> Step:
    words = [
        f"--batch-sizes={_listed(ept.batch_sizes)}",
        f"--input-tokens={_listed(ept.input_tokens)}",
        f"--new-tokens={_listed(ept.new_tokens)}",
        f"--requests={ept.requests}",
        f"--repeats={ept.repeats}",
        f"--engine={ept.engine}",
        f"--tensor={ept.tensor}",
        f"--meter={recipe.energy.meter}",
    ]
    if recipe.energy.cpu_tdp_w is not None:
        words.append(f"--cpu-tdp-w={recipe.energy.cpu_tdp_w}")
    if recipe.teacher is None or not recipe.evaluation.teacher:
        words.append("--student-only")
    argv = (sys.executable, "-m", "ekd_nemo", "eval", "ept", argument(run.path), *words)
    caption = "measuring the energy per token of inference"
    return Step("ept", caption, argv, products=(run.ept_json,))


def _listed(sizes: Sequence[int]) -> str:
    return ",".join(str(size) for size in sizes)
