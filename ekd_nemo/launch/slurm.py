"""A launch on a cluster: check everything, make the run directories, submit the graph; status, cancel, resume."""

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from ekd_nemo.config.cluster import LoadedCluster
from ekd_nemo.config.resolve import ResolvedRecipe, read_resolved
from ekd_nemo.errors import EkdError, RunDirError, RunError
from ekd_nemo.launch.checks import check_plan, check_settings
from ekd_nemo.launch.plan import Plan, plan_launch
from ekd_nemo.launch.slurm_commands import (
    JobState,
    cancel,
    job_states,
    sbatch_argv,
    submit,
)
from ekd_nemo.launch.slurm_graph import SHARED_PARTS, SUMMARISE, Launch, parts_of
from ekd_nemo.launch.slurm_jobs import (
    Job,
    JobsFile,
    jobs_file,
    read_jobs,
    submitting,
    write_jobs,
)
from ekd_nemo.launch.slurm_run import make_run, parts_to_do
from ekd_nemo.launch.slurm_site import check_site, site_problems
from ekd_nemo.launch.slurm_text import LOGS, Part, Place, sbatch_text
from ekd_nemo.planner.scenario import check_precisions
from ekd_nemo.records.atomic import write_text
from ekd_nemo.records.jsonl import ReadReport, read_objects
from ekd_nemo.records.rundir import RunDir

Say = Callable[[str], None]


def check_launch(launch: Launch) -> None:
    """Everything about recipe, models and data that can be known beforehand; hubs are not asked from here.

    Raises: UserError of some kind, in one line.
    """
    for plan in launch.plans:
        check_settings(plan.resolved)
        check_precisions(plan.recipe, launch.cluster, plan.resolved.place)
    check_plan(launch.plans[0], ask_hub=False)


def script_file(launch: Launch, part: str) -> Path:
    """Where the sbatch text of a part is kept: with the first repeat."""
    return launch.runs[0].path / LOGS / f"{part}.sbatch"


def describe(launch: Launch, loaded: LoadedCluster) -> str:
    """Everything that a launch would write and submit, for `--dry-run`."""
    lines = [
        f"launch {launch.place.name}: {launch.plans[0].recipe.method} on {launch.ranks} rank(s) of {loaded.source}, "
        f"{len(launch.runs)} run(s)",
        "",
        "would write:",
    ]
    for run in launch.runs:
        lines += [f"  {path}" for path in (run.run_json, run.recipe_yaml, jobs_file(run))]
    parts = parts_of(launch)
    lines += [f"  {script_file(launch, part.name)}" for part in parts]
    lines += ["", "would submit:"]
    for part in parts:
        argv = sbatch_argv(script_file(launch, part.name), [f"<{name}>" for name in part.after])
        lines.append(f"  {shlex.join(argv)}")
    for part in parts:
        lines += ["", f"--- {part.name}.sbatch", sbatch_text(part, launch.cluster, launch.place)]
    problems = [str(problem) for problem in site_problems(launch, loaded)]
    lines += [f"would be refused here: {problem}" for problem in problems]
    return "\n".join(lines).rstrip("\n")


def launch_cluster(launch: Launch, loaded: LoadedCluster, say: Say) -> None:
    """Make the run directories and submit every part that is not finished.

    Raises: UserError before anything is made; RunError if Slurm refuses a job: what was submitted is cancelled.
    """
    _refuse_active(launch.runs)
    check_launch(launch)
    check_site(launch, loaded)
    wanted = _wanted(launch.plans)
    if not wanted:
        say(f"{launch.place.name}: everything is done already")
        return
    with ExitStack() as only_one:
        for plan in launch.plans:
            make_run(plan.run, plan.recipe, launch.cluster)
            (plan.run.path / LOGS).mkdir(parents=True, exist_ok=True)
            only_one.enter_context(submitting(plan.run))
        _refuse_active(launch.runs)  # by one that has submitted since
        _submit_parts(launch, parts_of(launch, wanted), say)
    say(f"how it goes: ekd recipe status {shlex.quote(str(launch.runs[0].path))}")


def _wanted(plans: Sequence[Plan]) -> dict[str, list[int]]:
    """The parts that repeats still need, each with their numbers, and the summary of all."""
    wanted: dict[str, list[int]] = {}
    for number, plan in enumerate(plans):
        for part in parts_to_do(plan):
            wanted.setdefault(part, []).append(number)
    return wanted | {SUMMARISE: [0]} if wanted else wanted


def _refuse_active(runs: Sequence[RunDir]) -> None:
    """Refuse runs that have jobs waiting or running.

    Raises: RunDirError naming the jobs.
    """
    for run in runs:
        if not jobs_file(run).is_file():
            continue
        active = [state for state in _states(read_jobs(run)) if state.is_active]
        if active:
            ids = ", ".join(sorted({state.job_id for state in active}))
            raise RunDirError(
                f"{run.path}: jobs {ids} are at work on it; wait, `ekd recipe cancel` it, or take --new"
            )


def _states(jobs: JobsFile) -> list[JobState]:
    return job_states([job.job_id for job in jobs.jobs]) if jobs.jobs else []


def _submit_parts(launch: Launch, parts: Sequence[Part], say: Say) -> None:
    """Write and submit the scripts in order; jobs.json grows with each.

    Raises: RunError if Slurm refuses one.
    """
    record = _record(launch)
    ids: dict[str, str] = {}
    submitted: list[Job] = []
    for part in parts:
        script = script_file(launch, part.name)
        write_text(script, sbatch_text(part, launch.cluster, launch.place))
        after = tuple(ids[name] for name in part.after)
        try:
            ids[part.name] = submit(script, after)
        except EkdError as error:
            _take_back(submitted)
            raise RunError(
                f"{part.name}: {error}; nothing of this launch is left in the queue"
            ) from error
        tasks = None if part.array is None else len(part.tasks or part.arguments)
        submitted.append(
            Job(part=part.name, job_id=ids[part.name], tasks=tasks, after=after, script=str(script))
        )
        record = record.with_submission(submitted, first=len(submitted) == 1)
        write_jobs(record)
        say(f"{part.name}: job {ids[part.name]}" + (f", {tasks} tasks" if tasks else ""))


def _take_back(submitted: Sequence[Job]) -> None:
    if submitted:
        cancel([job.job_id for job in submitted])


def _record(launch: Launch) -> JobsFile:
    """The record so far: that of earlier submissions, else a new one."""
    fresh = JobsFile(
        name=launch.place.name,
        workdir=str(launch.place.workdir),
        runs=tuple(str(run.path) for run in launch.runs),
        ranks=launch.ranks,
        cluster=launch.cluster,
    )
    if not jobs_file(launch.runs[0]).is_file():
        return fresh
    return fresh.model_copy(update={"submissions": read_jobs(launch.runs[0]).submissions})


def stored_launch(run: RunDir) -> Launch:
    """The launch that a run belongs to, as jobs.json and the recipes say.

    Raises: RunDirError or ConfigError in one line.
    """
    jobs = read_jobs(run)
    runs = [RunDir(Path(path)) for path in jobs.runs]
    plans = tuple(
        plan_launch(
            ResolvedRecipe(read_resolved(each.recipe_yaml), each.recipe_yaml, {}), each, jobs.ranks
        )
        for each in runs
    )
    place = Place(Path(jobs.workdir), tuple(each.path for each in runs), jobs.name)
    return Launch(plans, jobs.cluster, place)


def resume(run: RunDir, say: Say) -> None:
    """Submit again what the launch of a run has not finished.

    Raises: RunDirError while its jobs wait or run.
    """
    launch = stored_launch(run)
    source = jobs_file(run)
    launch_cluster(launch, LoadedCluster(launch.cluster, source, {}), say)


def cancel_launch(run: RunDir, say: Say) -> None:
    """Cancel all jobs of the launch that a run belongs to.

    Raises: RunDirError where there are none; RunError with what scancel said.
    """
    jobs = read_jobs(run)
    active = sorted({state.job_id for state in _states(jobs) if state.is_active}, key=int)
    if not active:
        say(f"{jobs.name}: no job waits or runs")
        return
    cancel(active)
    others = len(jobs.runs) - 1
    say(
        f"{jobs.name}: cancelled job(s) {', '.join(active)}"
        + (f", those of {others} other repeat(s) as well" if others else "")
    )


def status_rows(run: RunDir) -> list[tuple[str, ...]]:
    """A table of the launch that a run belongs to: one row a job, or a task of an array.

    Raises: RunDirError where there are no jobs; RunError for answers of Slurm that are not understood.
    """
    jobs = read_jobs(run)
    states = _states(jobs)
    rows: list[tuple[str, ...]] = [("PART", "JOB", "STATE", "TIME", "NODES", "RUN")]
    for job in jobs.jobs:
        rows += _job_rows(jobs, job, [state for state in states if state.job_id == job.job_id])
    return rows


def _job_rows(jobs: JobsFile, job: Job, states: Sequence[JobState]) -> Iterable[tuple[str, ...]]:
    if not states:
        yield (job.part, job.job_id, "n/a: Slurm has forgotten it", "", "", _whose(jobs, job, 0))
    for state in sorted(states, key=lambda each: each.task or 0):
        number = job.job_id if state.task is None else f"{job.job_id}_{state.task}"
        word = (
            f"{state.state} ({state.reason})"
            if state.reason and state.state != "COMPLETED"
            else state.state
        )
        yield (
            job.part,
            number,
            word,
            state.elapsed,
            state.nodes,
            _whose(jobs, job, state.task or 0),
        )


def _whose(jobs: JobsFile, job: Job, task: int) -> str:
    if job.part in SHARED_PARTS and len(jobs.runs) > 1:
        return "all"
    return Path(jobs.runs[task]).name


def progress_lines(run: RunDir) -> list[str]:
    """One line a run of the launch: the last step, and attempts to train; the building of shards is none."""
    return [_progress(RunDir(Path(path))) for path in read_jobs(run).runs]


def _progress(run: RunDir) -> str:
    recipe = read_resolved(run.recipe_yaml)
    step = _last_step(run)
    attempts = json.loads(run.run_json.read_text()).get("attempts", ())
    trained = [attempt for attempt in attempts if attempt.get("world_size")]
    return f"{run.run_id}: step {step} of {recipe.train.steps}, {len(trained)} attempt(s)"


def _last_step(run: RunDir) -> str:
    if not run.train_log.is_file():
        return "n/a"
    last = "n/a"
    for line in read_objects(run.train_log, ReadReport()):
        with suppress(KeyError):
            last = str(line["step"])
    return last
