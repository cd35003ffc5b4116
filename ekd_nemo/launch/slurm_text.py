"""The text of a batch script: a part of the job graph and a cluster go in, sbatch text comes out. Nothing is run here.

Every value is quoted for its reader: `#SBATCH` lines by sbatch's rules, everything else by the shell's.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ekd_nemo.config.cluster import Cluster, Slurm
from ekd_nemo.errors import EXIT_SAVED

LOGS: Final = Path("logs") / "slurm"  # below the run directory
EXIT_HUNG: Final = 76  # of the samplers' step: a rank has fallen silent, and the log names it
# What a process ends with that SIGUSR1 or SIGTERM reaches before it listens: 128 + the signal. The last checkpoint
# stands.
EXIT_UNHEARD: Final = (138, 143)

# Parts without ranks that are further at each start, block by block: the time limit is no failure of theirs.
GOES_ON: Final = ("cache",)

# What ranks need on any cluster; what a site or a device needs stands in the cluster file, and goes before these.
DEFAULTS: Final = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": (
        "1",
        "a failed collective ends its rank instead of hanging all others",
    ),
    "HYDRA_FULL_ERROR": ("1", "NeMo's errors whole"),
    "PYTHONUNBUFFERED": ("1", "logs grow as things happen"),
    "PYTHONFAULTHANDLER": ("1", "a crash in native code leaves a Python stack in the log"),
}


@dataclass(frozen=True)
class Part:
    """One job of the graph, or an array of them with one task for each run.

    Attributes:
        name: data, cache, train, export, eval, ept or summarise.
        caption: what it does, for the reader of the script.
        arguments: of `cluster.python`, for each run; one entry where the runs share the part.
        after: parts that must have succeeded.
        nodes: nodes that it takes.
        ranks: training ranks on them; 0 for one process.
        tasks: numbers of the runs that still need it; None: all.
        in_turn: whether only one run's task may be at work at a time.
    """

    name: str
    caption: str
    arguments: tuple[tuple[str, ...], ...]
    after: tuple[str, ...] = ()
    nodes: int = 1
    ranks: int = 0
    tasks: tuple[int, ...] | None = None
    in_turn: bool = False

    @property
    def array(self) -> str | None:
        """The numbers of the array's tasks as Slurm writes them; None for a plain job."""
        if len(self.arguments) == 1:
            return None
        tasks = f"0-{len(self.arguments) - 1}"
        if self.tasks is not None:
            tasks = ",".join(str(task) for task in self.tasks)
        return f"{tasks}%1" if self.in_turn else tasks


@dataclass(frozen=True)
class Place:
    """Where a launch lives: absolute paths, the same on all nodes.

    Attributes:
        workdir: the folder that the recipe's relative paths start from.
        runs: the run directories of the launch, one a repeat.
        name: of the launch, in job names.
    """

    workdir: Path
    runs: tuple[Path, ...]
    name: str


def directive(option: str, value: str | int | None = None) -> str:
    r"""An `#SBATCH` line. sbatch takes quotes as a shell does, but a backslash escapes inside single quotes as well."""
    if value is None:
        return f"#SBATCH --{option}"
    text = str(value).replace("\\", "\\\\")
    return f"#SBATCH --{option}={shlex.quote(text)}"


def pattern(path: Path) -> str:
    """A path inside a file name pattern of Slurm: percent signs doubled."""
    return str(path).replace("%", "%%")


def sbatch_text(part: Part, cluster: Cluster, place: Place) -> str:
    """The whole batch script of a part; ends with a line break."""
    assert cluster.slurm is not None
    sections = [
        _header(part, cluster, place),
        _begin(place),
        _requeue(cluster.slurm),
        _choice(part, cluster, place),
        _environment(part, cluster),
        _container(cluster, place),
        _ranks(part, cluster, cluster.slurm) if part.ranks else _single(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(part: Part, cluster: Cluster, place: Place) -> str:
    assert cluster.slurm is not None
    slurm, several = cluster.slurm, part.array is not None
    log = f"{pattern(place.runs[0] / LOGS / part.name)}-{'%A_%a' if several else '%j'}.log"
    lines = [
        "#!/bin/bash",
        f"# {part.caption}",
        f"# Part {part.name} of {place.name}. How it goes: ekd recipe status {shlex.quote(str(place.runs[0]))}",
        directive("job-name", f"{place.name}.{part.name}"),
        directive("partition", slurm.partition),
    ]
    lines += [directive(key, value) for key, value in _who_pays(slurm) if value is not None]
    lines += [
        directive("nodes", part.nodes),
        directive("ntasks-per-node", _tasks_per_node(part)),
    ]
    lines += [
        directive(key, value) for key, value in _resources(part, cluster) if value is not None
    ]
    lines += [directive("time", slurm.time_limit)]
    if several:
        lines.append(directive("array", part.array))
    if part.ranks or part.name in GOES_ON:
        lines.append(directive("signal", f"USR1@{slurm.grace_s}"))
    lines.append(directive("requeue" if slurm.requeue else "no-requeue"))
    lines += [
        directive("kill-on-invalid-dep", "yes"),
        directive("open-mode", "append"),
        directive("output", log),
        directive("export", ",".join(["HOME", "PATH", "USER", "LANG", *cluster.secrets])),
    ]
    for name, value in slurm.options.items():
        if value is not False:
            lines.append(directive(name, None if value is True else str(value)))
    return "\n".join(lines)


def _who_pays(slurm: Slurm) -> tuple[tuple[str, str | None], ...]:
    return (("account", slurm.account), ("qos", slurm.qos))


def _tasks_per_node(part: Part) -> int:
    return part.ranks // part.nodes if part.ranks else 1


def cpus_per_task(part: Part, cluster: Cluster) -> int | None:
    """Cores of a rank: its share of the node's; a single process has as many as one rank's devices bring."""
    cores = cluster.nodes.cpus_per_node
    return None if cores is None else max(1, cores // cluster.nodes.devices_per_node)


def _devices(part: Part, cluster: Cluster) -> int:
    """Devices of each node that a part takes: one a rank; evaluation and the benchmark may use a whole node."""
    if part.ranks:
        return part.ranks // part.nodes
    return {"data": 0, "summarise": 0, "export": 1}.get(part.name, cluster.nodes.devices_per_node)


def _resources(part: Part, cluster: Cluster) -> tuple[tuple[str, str | int | None], ...]:
    slurm, devices = cluster.slurm, _devices(part, cluster)
    assert slurm is not None
    gres = f"{slurm.gres}:{devices}" if slurm.gres and devices else None
    return (("cpus-per-task", cpus_per_task(part, cluster)), ("gres", gres))


def _begin(place: Place) -> str:
    return "\n".join(
        [
            "set -uo pipefail",
            'fail() { echo "error: $1" >&2; exit "${2:-1}"; }',
            f"cd {shlex.quote(str(place.workdir))} || fail 'the working folder is not there on this node'",
        ]
    )


def _requeue(slurm: Slurm) -> str:
    told = " | ".join(str(code) for code in (EXIT_SAVED, *EXIT_UNHEARD))
    return _REQUEUE.format(told=told, restarts=slurm.max_restarts)


def _choice(part: Part, cluster: Cluster, place: Place) -> str:
    """Which run this job is, and its command."""
    if len(part.arguments) == 1:
        return "\n".join(_one_run(part.arguments[0], cluster, place.runs[0], ""))
    lines = ["# One task of the array for each repeat.", 'case "$SLURM_ARRAY_TASK_ID" in']
    for index, (arguments, run) in enumerate(zip(part.arguments, place.runs, strict=True)):
        lines += [f"  {index})", *_one_run(arguments, cluster, run, "    "), "    ;;"]
    lines += ['  *) fail "no repeat has the number $SLURM_ARRAY_TASK_ID" ;;', "esac"]
    return "\n".join(lines)


def _one_run(arguments: Sequence[str], cluster: Cluster, run: Path, indent: str) -> list[str]:
    command = shlex.join([cluster.python, *arguments])
    return [f"{indent}run={shlex.quote(str(run))}", f"{indent}command=({command})"]


def settings(part: Part, cluster: Cluster) -> dict[str, tuple[str, str]]:
    """The variables of the ranks, each with why; the cluster file's go before ours."""
    found = dict(DEFAULTS)
    cores = cpus_per_task(part, cluster)
    if cores is not None:
        found["OMP_NUM_THREADS"] = (str(cores), "the cores of one task")
    theirs = {name: (value, "") for name, value in cluster.environment.items()}
    return {**{k: v for k, v in found.items() if k not in theirs}, **theirs}


def _environment(part: Part, cluster: Cluster) -> str:
    lines = ["# For every rank; what carries no reason comes from the cluster file."]
    for name, (value, why) in settings(part, cluster).items():
        lines.append(
            f"export {name}={shlex.quote(value)}" + (f"  # {why}" if why else ""),
        )
    if cluster.secrets:
        lines.append(
            f"# Handed on by name alone, where the launcher had them: {', '.join(cluster.secrets)}."
        )
    return "\n".join(lines)


def mounts(cluster: Cluster, place: Place) -> list[str]:
    """What the container sees: the working folder, the folders of the runs, and the cluster file's own."""
    assert cluster.container is not None
    folders = dict.fromkeys([place.workdir, *(run.parent for run in place.runs)])
    inner = [
        folder
        for folder in folders
        if not any(other != folder and folder.is_relative_to(other) for other in folders)
    ]
    return [*(f"{folder}:{folder}" for folder in inner), *cluster.container.mounts]


def _container(cluster: Cluster, place: Place) -> str:
    container = cluster.container
    if container is None:
        return "container=()  # on the nodes themselves"
    names = [*DEFAULTS, "OMP_NUM_THREADS", *cluster.environment, *cluster.secrets]
    names += ["XDG_CACHE_HOME", "TRITON_CACHE_DIR", "MASTER_ADDR", "MASTER_PORT", "EKD_ATTEMPT"]
    options = [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(mounts(cluster, place))}",
        f"--container-workdir={place.workdir}",
        "--no-container-mount-home",
        "--container-writable" if container.writable else "--container-readonly",
        # What the image sets itself would win over ours otherwise.
        f"--container-env={','.join(dict.fromkeys(names))}",
    ]
    cache = shlex.quote(str(place.runs[0].parent / ".cache"))
    lines = [
        "# There is no home folder: a hub's models are fetched once for all nodes, compiled kernels stay on theirs.",
        f"export XDG_CACHE_HOME={cache}",
        'export TRITON_CACHE_DIR="/tmp/ekd-triton-$SLURM_JOB_ID"',
        "# pyxis; the variables named last win over those of the image.",
        "container=(",
    ]
    return "\n".join([*lines, *(f"  {shlex.quote(option)}" for option in options), ")"])


def _single() -> str:
    return "\n".join(
        [
            'srun --export=ALL --nodes=1 --ntasks=1 "${container[@]}" "${command[@]}"',
            "code=$?",
            'requeue_if_told_to_end "$code" "this part was told to end, what is finished is kept"',
            'exit "$code"',
        ]
    )


def _ranks(part: Part, cluster: Cluster, slurm: Slurm) -> str:
    cores = cpus_per_task(part, cluster)
    step = ["srun", "--export=ALL", f"--nodes={part.nodes}"]
    tasks = [f"--ntasks={part.ranks}", f"--ntasks-per-node={part.ranks // part.nodes}"]
    # srun takes the cores of a task from sbatch no longer since Slurm 22.05.
    tasks += [f"--cpus-per-task={cores}"] if cores else []
    # Slurm's default deals the ranks of a node out over its sockets in turn; boards stand behind sockets in blocks.
    tasks += ["--distribution=block:block"]
    tasks += [f"--mpi={slurm.mpi}"] if slurm.mpi else []
    sampler = [*step, f"--ntasks={part.nodes}", "--ntasks-per-node=1", "--overlap"]
    return _RANKS.format(
        sampler=shlex.join([*sampler, "--job-name=sampler"]),
        node=shlex.join([cluster.python, "-m", "ekd_nemo.launch.slurm_node"]),
        count=part.ranks,
        silent_s=slurm.heartbeat_s,
        ranks=shlex.join([*step, *tasks, "--kill-on-bad-exit=0", "--wait=60", "--label"]),
        hung=EXIT_HUNG,
    )


_REQUEUE: Final = """\
# What ends on the signal of the time limit or of a preemption is started again by this script; what Slurm kills, for a
# failed node or at the end of a preemption's grace, by Slurm. {told}: saved, or signalled before it listened.
restarts=${{SLURM_RESTART_COUNT:-0}}
requeue_if_told_to_end() {{
  case "$1" in {told}) ;; *) return ;; esac
  [ "$restarts" -lt {restarts} ] || fail "restarted $restarts times already; to go on: ekd recipe resume RUN" "$1"
  echo "$2: requeued"
  scontrol requeue "$SLURM_JOB_ID" || fail "Slurm does not requeue this job; to go on: ekd recipe resume RUN" "$1"
  sleep 300  # Slurm ends this script
}}"""

_RANKS: Final = """\
# Rank 0 is on the first node: its address as Slurm itself reaches it, and a port that differs from job to job.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol --oneliner show node "$first" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

# Sampler and watch of each node: a step of its own, so that it outlives the ranks. It counts the attempt in run.json.
ready="$run/logs/slurm/ready-$SLURM_JOB_ID-$restarts"
{sampler} "${{container[@]}}" \\
  {node} --run "$run" --ranks {count} --silent-s {silent_s} >>"$run/logs/sampler.log" 2>&1 &
sampler=$!
until [ -s "$ready" ]; do
  if ! kill -0 "$sampler" 2>/dev/null; then
    wait "$sampler"
    requeue_if_told_to_end $? "told to end before the ranks began"
    fail "the sampler did not start: $(tail -n 1 "$run/logs/sampler.log")"
  fi
  sleep 0.5
done
read -r EKD_ATTEMPT sampler_step <"$ready"
export EKD_ATTEMPT

# The ranks, one a task, no torchrun. Once the first has ended the others have a minute: they end together.
{ranks} "${{container[@]}}" \\
  "${{command[@]}}" >>"$run/logs/train.log" 2>&1 &
ranks=$!

# Until they end, or the samplers have named a rank that hangs.
hung="$run/logs/slurm/hung-$SLURM_JOB_ID-$restarts"
while kill -0 "$ranks" 2>/dev/null && [ ! -s "$hung" ]; do sleep 1; done
[ ! -s "$hung" ] || kill -TERM "$ranks" 2>/dev/null
wait "$ranks"
code=$?
scancel --quiet --signal=TERM "$SLURM_JOB_ID.$sampler_step"
for second in $(seq 60); do kill -0 "$sampler" 2>/dev/null || break; sleep 0.5; done
[ ! -s "$hung" ] || fail "$(sed 's/^error: //' "$hung")" {hung}

requeue_if_told_to_end "$code" "attempt $EKD_ATTEMPT of this run has ended, its state is kept"
[ "$code" -eq 0 ] && exit 0
fail "training failed with exit code $code: $(grep -a 'error: ' "$run/logs/train.log" | tail -n 1)" "$code\""""
