"""From a recipe, its repeats and a cluster to a graph of jobs: who runs where, and after whom. Nothing is run here."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ekd_nemo.config.cluster import Cluster, LoadedCluster
from ekd_nemo.config.resolve import ResolvedRecipe
from ekd_nemo.errors import ConfigError, LayoutError
from ekd_nemo.launch.identity import choose_run
from ekd_nemo.launch.plan import DATA_STEP, Plan, plan_launch
from ekd_nemo.launch.slurm_run import TRAIN
from ekd_nemo.launch.slurm_text import Part, Place
from ekd_nemo.records.rundir import RunDir

SUMMARISE: Final = "summarise"
SHARED_PARTS: Final = (DATA_STEP, "cache", SUMMARISE)  # once for all repeats
# The first of the repeats evaluates the teacher and the student's base for all: at once, each would do it again.
IN_TURN: Final = ("eval",)


@dataclass(frozen=True)
class Launch:
    """A launch on a cluster: one plan a repeat, and where they live."""

    plans: tuple[Plan, ...]
    cluster: Cluster
    place: Place

    @property
    def ranks(self) -> int:
        """Training ranks of each repeat."""
        return self.plans[0].world_size

    @property
    def runs(self) -> tuple[RunDir, ...]:
        """The run directories, one a repeat."""
        return tuple(plan.run for plan in self.plans)


def plan_cluster(
    resolved: ResolvedRecipe,
    loaded: LoadedCluster,
    *,
    workdir: Path,
    runs: Path | None = None,
    run_id: str | None = None,
    new: bool = False,
    nproc: int | None = None,
    repeats: int | None = None,
) -> Launch:
    """Choose the runs of a launch and lay out their steps; nothing is written.

    Args:
        resolved: the recipe; repeats count their seeds up from its own.
        loaded: the cluster.
        workdir: where the recipe's relative paths begin; absolute.
        runs: the folder of run directories; None: the cluster file's.
        run_id: the runs' name instead of the recipe's; repeats get their seed after it.
        new: start afresh.
        nproc: ranks of each repeat; None: all devices of the cluster file.
        repeats: how often to run, each with a seed of its own; None: as the recipe says.
    Raises: UserError of some kind, in one line.
    """
    cluster = loaded.cluster
    if cluster.slurm is None:
        raise ConfigError(
            f"{loaded.source}: this cluster has no section slurm; launch with --local, or name one that has"
        )
    count = resolved.recipe.repeats if repeats is None else repeats
    folder = Path(os.path.abspath(workdir / (Path(cluster.runs) if runs is None else runs)))  # noqa: PTH100 - links stay
    plans: list[Plan] = []
    for number in range(count):
        seeded = _with_seed(resolved, resolved.recipe.seed + number)
        name = f"{run_id}-s{seeded.recipe.seed}" if run_id and count > 1 else run_id
        run = choose_run(seeded.recipe, folder, name, new)
        plans.append(_plan(seeded, run, loaded, nproc))
    paths = tuple(plan.run.path for plan in plans)
    return Launch(tuple(plans), cluster, Place(workdir, paths, _launch_name(plans[0], count)))


def _with_seed(resolved: ResolvedRecipe, seed: int) -> ResolvedRecipe:
    return replace(resolved, recipe=resolved.recipe.model_copy(update={"seed": seed}))


def _launch_name(plan: Plan, repeats: int) -> str:
    run_id = plan.run.run_id
    return run_id.removesuffix(f"-s{plan.recipe.seed}") if repeats > 1 else run_id


def _plan(resolved: ResolvedRecipe, run: RunDir, loaded: LoadedCluster, nproc: int | None) -> Plan:
    """The plan of one repeat.

    Raises: LayoutError, with the place of the cluster file, when no layout fits the ranks.
    """
    nodes = loaded.cluster.nodes
    ranks = loaded.cluster.world_size if nproc is None else nproc
    try:
        plan = plan_launch(resolved, run, ranks)
    except LayoutError as error:
        if nproc is not None:
            raise
        raise LayoutError(
            f"{loaded.place('nodes')}: {nodes.count} nodes of {nodes.devices_per_node} devices: "
            f"{str(error).replace('--nproc', 'ranks')}; take fewer with --nproc"
        ) from error
    if ranks > loaded.cluster.world_size:
        raise LayoutError(
            f"--nproc {ranks}: {loaded.source} has {loaded.cluster.world_size} devices"
        )
    if ranks > nodes.devices_per_node and ranks % nodes.devices_per_node:
        raise LayoutError(
            f"--nproc {ranks} leaves a node partly empty; accepted: up to {nodes.devices_per_node}, "
            f"or multiples of {nodes.devices_per_node}"
        )
    return plan


def parts_of(launch: Launch, wanted: Mapping[str, Sequence[int]] | None = None) -> tuple[Part, ...]:
    """The graph's jobs, each after those that it depends on.

    Args:
        launch: from `plan_cluster`.
        wanted: parts to take, and the numbers of the runs that need them; None takes all. What a part depends on and
            is not taken is done already.
    """
    plan = launch.plans[0]
    names = [*(step.name for step in (*plan.preparation, *plan.steps)), SUMMARISE]
    captions = {step.name: step.caption for step in (*plan.preparation, *plan.steps)}
    captions[SUMMARISE] = f"summarising {len(launch.runs)} run(s)"
    taken = [name for name in names if wanted is None or name in wanted]
    return tuple(
        Part(
            name=name,
            caption=captions[name],
            arguments=_arguments(launch, name),
            after=_after(name, taken),
            nodes=_nodes(launch) if name == TRAIN else 1,
            ranks=launch.ranks if name == TRAIN else 0,
            tasks=None if wanted is None or name in SHARED_PARTS else tuple(wanted[name]),
            in_turn=name in IN_TURN,
        )
        for name in taken
    )


def _after(name: str, taken: Sequence[str]) -> tuple[str, ...]:
    """A part comes after the one before it: what the first needs is then there as well."""
    index = taken.index(name)
    return tuple(taken[max(0, index - 1) : index])


def _nodes(launch: Launch) -> int:
    return max(1, launch.ranks // launch.cluster.nodes.devices_per_node)


def _arguments(launch: Launch, name: str) -> tuple[tuple[str, ...], ...]:
    if name == SUMMARISE:
        paths = [str(run.path) for run in launch.runs]
        return (("-m", "ekd_nemo", "metrics", "summarise", *paths),)
    runs = launch.runs[:1] if name in SHARED_PARTS else launch.runs
    if name == TRAIN:
        return tuple(("-m", "ekd_nemo.launch.slurm_rank", "--run", str(run.path)) for run in runs)
    assert launch.cluster.slurm is not None
    held = ("--host-only",) if name == DATA_STEP and launch.cluster.slurm.gres else ()
    return tuple(
        (
            "-m",
            "ekd_nemo.launch.slurm_part",
            name,
            "--run",
            str(run.path),
            "--ranks",
            str(launch.ranks),
            *held,
        )
        for run in runs
    )
