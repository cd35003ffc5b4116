"""What Slurm's variables say about this process, and the same in torch's words."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ekd_nemo.errors import LayoutError, RunError

# A node name's list as Slurm writes it: n1 or n[1-3,07],login2.
_NODE = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_NODES = re.compile(rf"{_NODE.pattern}(?:,{_NODE.pattern})*")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Task:
    """One task of a Slurm step.

    Attributes:
        attempt: what tells this start of the job from an earlier one: job id and restart count.
        step: the step's number in the job.
        rank: of all tasks of the step.
        local_rank: among those of its node.
        world_size: tasks of the step.
        local_size: tasks of this node.
        nodes: names of the step's nodes, in the order of their tasks.
        node_index: of this task's node among them.
    """

    attempt: str
    step: str
    rank: int
    local_rank: int
    world_size: int
    local_size: int
    nodes: tuple[str, ...]
    node_index: int

    def torch_environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables that torch's `env://` and the worker read; the batch script's MASTER_* stand.

        Without a batch script (a step that somebody typed) rank 0 is on the first node, and the port
        comes from the job's number.
        """
        job = int(self.attempt.split("-")[0])
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "GROUP_RANK": str(self.node_index),
            "MASTER_ADDR": environ.get("MASTER_ADDR", self.nodes[0]),
            "MASTER_PORT": environ.get("MASTER_PORT", str(20000 + job % 10000)),
            "TORCHELASTIC_RUN_ID": self.attempt,
        }


def in_step(environ: Mapping[str, str]) -> bool:
    """Whether this process is a task of an srun step; a batch script is none, whatever it inherited."""
    return environ.get("SLURM_STEP_ID", "").isdigit() and "SLURM_PROCID" in environ


def read_task(environ: Mapping[str, str]) -> Task:
    """This process's task.

    Raises: RunError naming the variable that is missing; LayoutError for nodes with unlike numbers of tasks.
    """
    sizes = _tasks_per_node(_variable(environ, "SLURM_STEP_TASKS_PER_NODE"))
    if len(set(sizes)) > 1:
        raise LayoutError(
            f"this step has {', '.join(map(str, sizes))} tasks on its nodes; accepted: as many on each"
        )
    return Task(
        attempt=attempt_name(environ),
        step=_variable(environ, "SLURM_STEP_ID"),
        rank=int(_variable(environ, "SLURM_PROCID")),
        local_rank=int(_variable(environ, "SLURM_LOCALID")),
        world_size=int(_variable(environ, "SLURM_STEP_NUM_TASKS")),
        local_size=sizes[0],
        nodes=expand_nodes(_variable(environ, "SLURM_STEP_NODELIST")),
        node_index=int(_variable(environ, "SLURM_NODEID")),
    )


def attempt_name(environ: Mapping[str, str]) -> str:
    """`JOB-RESTARTS`: one start of one job."""
    return f"{_variable(environ, 'SLURM_JOB_ID')}-{environ.get('SLURM_RESTART_COUNT', '0')}"


def _variable(environ: Mapping[str, str], name: str) -> str:
    if name not in environ:
        raise RunError(f"{name} is not set: this is started by srun, inside a Slurm job")
    return environ[name]


def _tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` -> [2, 2, 2, 1]."""
    sizes: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if found is None:
            raise RunError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}, which Slurm does not write")
        sizes += [int(found[1])] * int(found[2] or 1)
    return sizes


def expand_nodes(text: str) -> tuple[str, ...]:
    """The names of a node list: `n[1-2,07]x,login` -> n1x, n2x, n07x, login.

    Inside a container there is no scontrol to ask.
    Raises: RunError for what is no node list.
    """
    if not _NODES.fullmatch(text):
        raise RunError(f"{text!r} is no list of nodes")
    return tuple(name for part in _NODE.findall(text) for name in _expand(part))


def _expand(part: str) -> list[str]:
    """One comma-free element: prefix, bracket, rest; the rest may hold brackets again."""
    before, bracket, after = part.partition("[")
    if not bracket:
        return [part]
    inside, _, rest = after.partition("]")
    numbers: list[str] = []
    for each in inside.split(","):
        found = _RANGE.fullmatch(each)
        if found is None:
            raise RunError(f"{part!r} is no list of nodes")
        first, last = found[1], found[2] or found[1]
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [f"{before}{number}{tail}" for number in numbers for tail in _expand(rest)]
