"""Which run a launch is: its id, whether it goes on or starts afresh, and the lock that keeps it to one launch."""

import fcntl
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import read_resolved
from ekd_nemo.errors import RunDirError, UserError
from ekd_nemo.records.identity import make_run_id
from ekd_nemo.records.rundir import RunDir

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
LAUNCH_FOLDER = ".launch"  # beside the runs: locks, and logs of what is done before a run exists


def choose_run(recipe: Recipe, runs: Path, run_id: str | None = None, new: bool = False) -> RunDir:
    """The directory of a launch.

    Args:
        recipe: names the run, unless `run_id` does.
        runs: the folder of run directories.
        run_id: an id of the user's.
        new: take the first free id of `ID`, `ID-2`, `ID-3`, ...
    Raises: UserError for an id that is not a plain name; RunDirError where the directory is not a run,
        or is the run of another recipe.
    """
    name = run_id or make_run_id(recipe.name, recipe.model_dump(mode="json"), recipe.seed)
    if not _RUN_ID.fullmatch(name):
        raise UserError(f"--run-id {name!r}: accepted: letters, digits, dot, dash and underscore")
    run = RunDir(runs / name)
    if new:
        return _first_free(run)
    _check_same_recipe(run, recipe)
    return run


def _first_free(run: RunDir) -> RunDir:
    candidate, number = run, 1
    while candidate.path.exists():
        number += 1
        candidate = RunDir(run.path.with_name(f"{run.path.name}-{number}"))
    return candidate


def _check_same_recipe(run: RunDir, recipe: Recipe) -> None:
    if not run.path.exists():
        return
    if not run.path.is_dir() or (any(run.path.iterdir()) and not run.recipe_yaml.is_file()):
        raise RunDirError(
            f"{run.path}: exists and is not a run (no {run.recipe_yaml.name}); take another --run-id or --runs"
        )
    if run.recipe_yaml.is_file():
        there = read_resolved(run.recipe_yaml).model_dump(mode="json")
        keys = differences(there, recipe.model_dump(mode="json"))
        if keys:
            raise RunDirError(
                f"{run.recipe_yaml}: this run has another recipe: {'; '.join(keys)}; "
                "take another --run-id, or --new to start afresh"
            )


def differences(there: Any, here: Any, path: str = "") -> list[str]:
    """The values in which two recipes differ, as `train.steps is 10 there, 20 here`."""
    if isinstance(there, dict) and isinstance(here, dict):
        first, second = cast("dict[str, Any]", there), cast("dict[str, Any]", here)
        found: list[str] = []
        for key in dict.fromkeys([*first, *second]):
            found += differences(first.get(key), second.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if there == here else [f"{path} is {there!r} there, {here!r} here"]


def launch_folder(run: RunDir) -> Path:
    """Where the launcher keeps what must not lie in the run directory."""
    return run.path.parent / LAUNCH_FOLDER


@contextmanager
def only_launch(run: RunDir) -> Generator[int]:
    """Hold the run's lock.

    The training process inherits the descriptor: while ranks of a killed launcher still save, the lock is held.

    Yields: the lock's descriptor.
    Raises: RunDirError if another launch holds it.
    """
    folder = launch_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(
        folder / f"{run.path.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
    )
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise RunDirError(
                f"{run.path}: another launch (process {owner}) is at work on it; wait, stop it, or take --new"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
