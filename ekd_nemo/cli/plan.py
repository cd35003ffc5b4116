"""`ekd recipe plan`: what a recipe would cost on a cluster, before anything is asked of it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ekd_nemo.errors import LayoutError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ekd_nemo.config.cluster import Cluster, LoadedCluster
    from ekd_nemo.planner.alternatives import Alternative
    from ekd_nemo.planner.assumptions import Assumptions
    from ekd_nemo.planner.calibration import Calibration


class PlanFormat(StrEnum):
    """How a plan is written."""

    TABLE = "table"
    JSON = "json"


def plan(
    name: Annotated[
        str, typer.Argument(help="A recipe's name, or the path of a .yaml file; NAME+VARIANT.")
    ],
    cluster: Annotated[
        str, typer.Option(metavar="FILE", help="A cluster file, or the name of a known cluster.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one value. Repeatable."),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Nodes to take; by default all of the cluster's.")
    ] = None,
    output: Annotated[
        PlanFormat, typer.Option("--format", help="table or json.")
    ] = PlanFormat.TABLE,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="RUN",
            help="A run measured on this cluster; scales times, and memory where its boards told it. Repeatable.",
        ),
    ] = None,
    segment_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Mean tokens of a packed segment; by default one fills a sample."),
    ] = None,
) -> None:
    """Forecast memory, time, energy and alternatives of a recipe on a cluster; nothing is run."""
    from ekd_nemo.config.cluster import load_cluster
    from ekd_nemo.config.resolve import resolve_recipe
    from ekd_nemo.planner.alternatives import Machine, alternatives
    from ekd_nemo.planner.assumptions import Assumptions
    from ekd_nemo.planner.calibration import calibrate as measure
    from ekd_nemo.planner.render import misfit
    from ekd_nemo.planner.scenario import models

    resolved, loaded = resolve_recipe(name, overrides or ()), load_cluster(cluster)
    on, recipe = loaded.cluster, resolved.recipe
    ranks = _ranks(loaded, nodes)
    assumed = Assumptions(segment_tokens=segment_tokens)
    runs = calibrate or []
    calibration = measure(runs, on, assumed, _peaks(runs))
    pair = models(recipe, _sequence(recipe.data.path, recipe.data.build), resolved.place)
    times, memory = calibration.factor, calibration.memory_factor
    machine = Machine(on, ranks, assumed, times, resolved.place, memory)
    rows = alternatives(recipe, pair, machine)
    typer.echo(_written(output, on, rows, assumed, calibration))
    own = rows[0]
    if own.found is None:
        raise LayoutError(own.reason)
    if why := misfit(own.found):
        raise LayoutError(f"{resolved.source}: {own.label} does not fit cluster {on.name}: {why}")


def _ranks(loaded: "LoadedCluster", nodes: int | None) -> int:
    """Devices that are taken.

    Raises: UserError if the cluster has fewer nodes.
    """
    machine = loaded.cluster
    taken = machine.nodes.count if nodes is None else nodes
    if taken > machine.nodes.count:
        raise UserError(
            f"{loaded.place('nodes.count')}: --nodes {taken}: cluster {machine.name} has {machine.nodes.count}"
        )
    return taken * machine.nodes.devices_per_node


def _peaks(runs: "Sequence[Path]") -> dict[Path, float]:
    """Bytes in use on the fullest board of each run that has a record of them."""
    if not runs:
        return {}
    from ekd_nemo.metrics.ledger import ledger_of_run
    from ekd_nemo.metrics.states import peaks_of
    from ekd_nemo.records.rundir import RunDir

    found: dict[Path, float] = {}
    for path in runs:
        run = RunDir(path)
        files = [*run.power_files(), *run.segment_files()]
        boards = peaks_of(ledger_of_run(run), files, "memory_used_bytes")
        if boards:
            found[path] = max(boards.values())
    return found


def _written(
    output: PlanFormat,
    cluster: "Cluster",
    rows: "Sequence[Alternative]",
    a: "Assumptions",
    calibration: "Calibration",
) -> str:
    """The plan as a table or as JSON."""
    import json

    from ekd_nemo.planner.render import plan_data, plan_text

    if output is PlanFormat.JSON:
        return json.dumps(plan_data(cluster, rows, a, calibration), indent=2)
    return plan_text(cluster, rows, a, calibration)


def _sequence(path: str, build: object) -> int:
    """Tokens of a sample: from the recipe, or from the shards where it does not build them."""
    from ekd_nemo.config.data import DataBuild
    from ekd_nemo.sources.manifest import sequence_length

    if isinstance(build, DataBuild):
        return build.sequence_length
    return sequence_length(path)
