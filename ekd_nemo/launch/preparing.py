"""The energy of building shards before there is a run: recorded beside the runs, then moved into the run."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ekd_nemo.config.recipe import Energy
from ekd_nemo.launch.sampling import sampler_of
from ekd_nemo.records.identity import read_identity
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.marks import Marks

DATA_STEP: Final = "data"


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
        with (
            sampler_of(scratch, energy) as sampler,
            Marks(
                marks_file, rank=0, uuids=sampler.uuids(), parallel={"data": 0}, attempt=attempt
            ) as marks,
            marks.phase("preprocess"),
        ):
            yield
    except BaseException:
        shutil.rmtree(scratch.path, ignore_errors=True)
        raise


def adopt(run: RunDir, folder: Path, attempt: int) -> None:
    """Move what `metered` recorded in this launch into the run; nothing where it recorded nothing."""
    scratch = _scratch(run, folder)
    run.telemetry.mkdir(exist_ok=True)
    for file in [*scratch.power_files(), *scratch.marks_files()]:
        file.rename(run.telemetry / f"{file.stem}.{DATA_STEP}-{attempt}.jsonl")
    shutil.rmtree(scratch.path, ignore_errors=True)


def _scratch(run: RunDir, folder: Path) -> RunDir:
    return RunDir(folder / f"{run.run_id}.preprocess")
