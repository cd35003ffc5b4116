"""One part of a launch as one process inside its job: `python -m ekd_nemo.launch.slurm_part NAME --run DIR`.

Does what a launch on one machine does in the same place: passes over what is finished, clears what an unfinished try
has left, says why a failure failed, and notes the step as finished.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from ekd_nemo.config.resolve import ResolvedRecipe, read_resolved
from ekd_nemo.errors import EXIT_OK, EXIT_SAVED, EkdError, RunError, UserError
from ekd_nemo.launch.failure import reason
from ekd_nemo.launch.history import note_finished, pending
from ekd_nemo.launch.plan import DATA_STEP, Plan, Step, plan_launch
from ekd_nemo.launch.preparing import metered_attempt
from ekd_nemo.launch.processes import run_process
from ekd_nemo.launch.signals import StopWatch
from ekd_nemo.launch.slurm_text import LOGS
from ekd_nemo.records.identity import read_identity
from ekd_nemo.records.rundir import RunDir


def read_plan(run: RunDir, ranks: int | None) -> Plan:
    """The plan of a run that a launch has made.

    Raises: UserError of some kind, in one line.
    """
    path = run.recipe_yaml
    return plan_launch(ResolvedRecipe(read_resolved(path), path, {}), run, ranks)


def find_step(plan: Plan, name: str) -> Step | None:
    """The step of a part, if it is still to be done.

    Raises: UserError that lists the parts.
    """
    own = {step.name for step in plan.steps}
    for step in (*plan.preparation, *pending(plan.run, plan.steps)):
        if step.name == name:
            return step
    if name not in own and name not in {DATA_STEP, "cache"}:
        raise UserError(f"part {name} is none of this run's; accepted: {', '.join(sorted(own))}")
    return None


def run_part(plan: Plan, name: str, *, host_only: bool = False) -> int:
    """Do a part; 0 also when there is nothing to do, EXIT_SAVED when it was told to stop.

    Shards are built under telemetry here; the other parts meter themselves.

    Args:
        plan: of the run.
        name: of the part.
        host_only: whether the job holds no GPU where those of the training do.
    Raises: RunError with the reason and the log.
    """
    step = find_step(plan, name)
    if step is None:
        sys.stdout.write(f"{name}: done already\n")
        return EXIT_OK
    for stale in step.replaces:
        if stale.exists():
            shutil.rmtree(stale)
    log = plan.run.path / LOGS.parent / f"{name}.log"
    sys.stdout.write(f"{step.caption}\n")
    sys.stdout.flush()
    is_data = step.name == DATA_STEP
    with (
        StopWatch() as watch,
        metered_attempt(plan.run, plan.recipe, host_only=host_only) if is_data else nullcontext(),
    ):
        ended = run_process(step, log, watch, {})
    if ended.code != EXIT_OK:
        if watch.first is not None:
            return EXIT_SAVED
        raise RunError(f"{name} failed: {reason(ended.code, ended.text)} (log: {log})")
    attempts = read_identity(plan.run).attempts
    note_finished(plan.run, step, attempts[-1].attempt if attempts else 1, ended.duration_s)
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Do a part; one line on stderr and an exit code when that fails."""
    parser = argparse.ArgumentParser(prog="ekd-slurm-part", description=__doc__)
    parser.add_argument("name", help="data, cache, export, eval or ept")
    parser.add_argument("--run", type=Path, required=True, help="the run directory")
    parser.add_argument("--ranks", type=int, help="training ranks of the run")
    parser.add_argument("--host-only", action="store_true", help="this job holds no GPU")
    arguments = parser.parse_args(argv)
    try:
        plan = read_plan(RunDir(arguments.run), arguments.ranks)
        return run_part(plan, arguments.name, host_only=arguments.host_only)
    except EkdError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
