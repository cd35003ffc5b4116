"""The energy of building shards: on this machine recorded before there is a run, on a cluster as an attempt of it."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ekd_nemo.config.recipe import Energy, Recipe
from ekd_nemo.launch.plan import DATA_STEP
from ekd_nemo.launch.sampling import sampler_of
from ekd_nemo.launch.slurm_run import identity_of
from ekd_nemo.records.capture import capture_attempt
from ekd_nemo.records.identity import begin_attempt, read_identity, set_devices
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.marks import Marks
from ekd_nemo.telemetry.process import Sampler


@contextmanager
def metered(run: RunDir, energy: Energy, folder: Path) -> Generator[None]:
    """Sample while the block builds shards, in phase `preprocess` of the attempt that comes next.

    A block that fails leaves no record: there is no run that it would belong to.

    Args:
        run: the run to be; nothing is written to it.
        energy: how it is metered.
        folder: of the launches, on the run's file system.
    Raises: UserError or RunError with what the sampler said if it does not start.
    """
    scratch = _scratch(run, folder)
    shutil.rmtree(scratch.path, ignore_errors=True)
    attempt = len(read_identity(run).attempts) + 1 if run.run_json.is_file() else 1
    marks_file = scratch.telemetry / f"marks-{DATA_STEP}.jsonl"
    try:
        with sampler_of(scratch, energy) as sampler, _marked(marks_file, sampler, attempt):
            yield
    except BaseException:
        shutil.rmtree(scratch.path, ignore_errors=True)
        raise


def adopt(run: RunDir, folder: Path, attempt: int) -> None:
    """Move what `metered` recorded in this launch into the run; nothing where it recorded nothing."""
    scratch = _scratch(run, folder)
    run.telemetry.mkdir(exist_ok=True)
    for file in [*scratch.power_files(), *scratch.segment_files(), *scratch.marks_files()]:
        file.rename(run.telemetry / f"{file.stem}.{DATA_STEP}-{attempt}{file.suffix}")
    shutil.rmtree(scratch.path, ignore_errors=True)


@contextmanager
def metered_attempt(run: RunDir, recipe: Recipe, *, host_only: bool) -> Generator[None]:
    """Sample while the block builds shards, in phase `preprocess` of an attempt of its own.

    Hours in the queue may lie between it and the training: in one attempt they would count as idle.

    Args:
        run: made, but for its attempts.
        recipe: of the run.
        host_only: whether the job holds no GPU where those of the training do.
    Raises: UserError or RunError with what the sampler said if it does not start.
    """
    stored = begin_attempt(run, identity_of(run, recipe), capture_attempt())
    number = stored.attempts[-1].attempt
    with sampler_of(run, recipe.energy, ignores_sigterm=True, host_only=host_only) as sampler:
        set_devices(run, sampler.identities())
        with _marked(run.telemetry / f"marks-{DATA_STEP}.jsonl", sampler, number):
            yield


@contextmanager
def _marked(path: Path, sampler: Sampler, attempt: int) -> Generator[None]:
    """Mark the block as phase `preprocess` of a rank on all accelerators, or on the processors where there are none."""
    uuids = sampler.uuids() or sampler.uuids("host")
    with (
        Marks(path, rank=0, uuids=uuids, parallel={"data": 0}, attempt=attempt) as marks,
        marks.phase("preprocess"),
    ):
        yield


def _scratch(run: RunDir, folder: Path) -> RunDir:
    return RunDir(folder / f"{run.run_id}.preprocess")
