"""Making a teacher's cache on this machine: a run of its own, metered from its start to its end."""

import os
from collections.abc import Callable
from pathlib import Path

from ekd_nemo.config.recipe import Recipe
from ekd_nemo.errors import EXIT_USER, ConfigError, LayoutError, RunError, UserError
from ekd_nemo.launch.cache_inputs import cache_folder
from ekd_nemo.launch.checks import check_extras
from ekd_nemo.launch.failure import reason
from ekd_nemo.launch.identity import launch_folder, only_launch
from ekd_nemo.launch.plan import (
    ATTEMPT_VARIABLE,
    THREADS_VARIABLE,
    UUIDS_VARIABLE,
    Step,
    _data_steps,
    ranks_argv,
)
from ekd_nemo.launch.processes import run_process
from ekd_nemo.launch.sampling import sampling
from ekd_nemo.launch.signals import StopWatch
from ekd_nemo.metrics.energy import run_energy
from ekd_nemo.metrics.ledger import ledger_of_run
from ekd_nemo.records.capture import capture_attempt
from ekd_nemo.records.identity import RunIdentity, begin_attempt, recipe_hash
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.cache_fit import check_build_fits, check_cache_fits
from ekd_nemo.sources.cache_manifest import (
    MANIFEST,
    Making,
    add_making,
    read_cache_manifest,
    read_made,
)

METHOD = "cache"

Say = Callable[[str], None]


def cache_run(recipe: Recipe, runs: Path) -> RunDir:
    """The run that makes the cache of a recipe: the same for every recipe that asks for the same."""
    return RunDir(runs / f"cache-{cache_folder(recipe).name}-{_hash(recipe)[:8]}")


def build_cache(recipe: Recipe, *, runs: Path, nproc: int | None = None, say: Say) -> None:
    """Build the cache of a recipe; does nothing where it is whole, goes on where it is begun.

    Args:
        recipe: with `teacher.cache.build`.
        runs: the folder of run directories.
        nproc: ranks; None: one copy of the teacher.
        say: takes lines for the reader of the console.

    Raises: UserError or RunError, in one line.
    """
    folder, run = cache_folder(recipe), cache_run(recipe, runs)
    if (folder / MANIFEST).is_file():
        check_cache_fits(recipe)
        _account(run, folder)
        say(f"{folder}: kept, it is whole")
        return
    assert recipe.teacher is not None
    assert recipe.teacher.cache is not None
    if recipe.teacher.cache.build is None:
        raise ConfigError(
            f"recipe {recipe.name}: {folder} holds no cache, and teacher.cache.build is not set; "
            "accepted: teacher.cache.build.kind topk, sampled, hidden or embeddings"
        )
    check_build_fits(recipe)
    check_extras(recipe)
    step = _step(recipe, run, nproc)
    with only_launch(run), StopWatch() as watch:
        for before in _data_steps(recipe):
            say(before.caption)
            _run(before, launch_folder(run) / f"{run.path.name}.log", watch, {})
        attempt = _begin(recipe, run, step.ranks)
        with sampling(run, recipe.energy) as uuids:
            environment = {ATTEMPT_VARIABLE: str(attempt), UUIDS_VARIABLE: ",".join(uuids)}
            _run(step, run.logs / "cache.log", watch, environment)
    _account(run, folder)
    for line in summary(folder):
        say(line)


def summary(folder: Path) -> list[str]:
    """What a cache holds and what it cost, one line each."""
    manifest, made = read_cache_manifest(folder), read_made(folder)
    who, size = manifest.identity, sum(block.bytes for block in manifest.blocks)
    settings = {
        name: getattr(who, name)
        for name in type(who).model_fields
        if getattr(who, name) not in (None, (), False)
        and name not in ("schema_version", "kind", "teacher", "tokenizer")
    }
    lines = [
        f"{folder}: {who.kind}, {manifest.samples:,} samples, {manifest.tokens:,} tokens, "
        f"{size / 1e6:,.2f} MB in {len(manifest.blocks)} blocks, "
        f"{size / manifest.tokens:.1f} bytes a token",
        f"teacher {who.teacher}, tokenizer {who.tokenizer[:16]}, identity {who.key}",
        ", ".join(f"{name} {value}" for name, value in settings.items()),
    ]
    for making in made.runs:
        energy = (
            f"E_cache n/a ({making.why_no_energy})"
            if making.energy_j is None
            else f"E_cache {making.energy_j:,.0f} J ({making.energy_source})"
        )
        lines.append(f"made by run {making.run_id}: {energy}, {making.tokens:,} tokens")
    return lines or [f"{folder}: nobody has written what it cost"]


def _hash(recipe: Recipe) -> str:
    """Over what decides the cache: teacher, shards and objective."""
    whole = recipe.model_dump(mode="json")
    return recipe_hash({key: whole[key] for key in ("teacher", "data", "objective")})


def _step(recipe: Recipe, run: RunDir, nproc: int | None) -> Step:
    assert recipe.teacher is not None
    parallel = recipe.teacher.parallel or recipe.student.parallel
    replica = parallel.tensor * parallel.pipeline
    ranks = nproc or replica
    if ranks % replica:
        raise LayoutError(
            f"--nproc {ranks}: one copy of the teacher takes tensor {parallel.tensor} x pipeline "
            f"{parallel.pipeline} ranks; accepted: multiples of {replica}"
        )
    words = ("--recipe", recipe.model_dump_json(), "--run", str(run.path.absolute()))
    return Step(
        "cache",
        f"running the teacher over the shards, for {cache_folder(recipe)}",
        ranks_argv(("ekd_nemo.worker", "cache", "build", *words), ranks),
        env={THREADS_VARIABLE: str(max(1, len(os.sched_getaffinity(0)) // ranks))},
        ranks=ranks,
    )


def _begin(recipe: Recipe, run: RunDir, ranks: int) -> int:
    run.path.mkdir(parents=True, exist_ok=True)
    identity = RunIdentity(
        run_id=run.run_id,
        recipe=f"cache {cache_folder(recipe).name}",
        recipe_hash=_hash(recipe),
        method=METHOD,
    )
    return begin_attempt(run, identity, capture_attempt(ranks)).attempts[-1].attempt


def _run(step: Step, log: Path, watch: StopWatch, environment: dict[str, str]) -> None:
    ended = run_process(step, log, watch, environment)
    if watch.first is not None:
        raise RunError(
            f"stopped by {watch.first.name}; blocks that are whole stay, the same command goes on"
        )
    if ended.code:
        message = f"{step.name} failed: {reason(ended.code, ended.text)} (log: {log})"
        raise UserError(message) if ended.code == EXIT_USER else RunError(message)


def _account(run: RunDir, folder: Path) -> None:
    """Write what the run has cost beside the cache; all its attempts together."""
    if not run.run_json.is_file():
        return
    energy = run_energy(ledger_of_run(run))
    whole, phase = energy.e_run, energy.phases.get("teacher_cache")
    manifest = read_cache_manifest(folder)
    add_making(
        folder,
        Making(
            run_id=run.run_id,
            run=str(run.path),
            energy_j=whole.value,
            energy_source=whole.source,
            teacher_cache_j=None if phase is None else phase.value,
            why_no_energy=whole.reason,
            tokens=manifest.tokens,
            samples=manifest.samples,
        ),
    )
