"""`ekd recipe plan`: what a recipe would cost on a cluster, before anything is asked of it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ekd_nemo.errors import LayoutError, UserError


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
            metavar="RUN", help="A run measured on this cluster; scales times. Repeatable."
        ),
    ] = None,
    segment_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Mean tokens of a packed segment; by default one fills a sample."),
    ] = None,
) -> None:
    """Forecast memory, time, energy and alternatives of a recipe on a cluster; nothing is run."""
    import json

    from ekd_nemo.config.cluster import load_cluster
    from ekd_nemo.config.resolve import resolve_recipe
    from ekd_nemo.planner.alternatives import Machine, alternatives
    from ekd_nemo.planner.assumptions import Assumptions
    from ekd_nemo.planner.calibration import calibrate as measure
    from ekd_nemo.planner.render import misfit, plan_data, plan_text
    from ekd_nemo.planner.scenario import models

    resolved, loaded = resolve_recipe(name, overrides or ()), load_cluster(cluster)
    machine, recipe = loaded.cluster, resolved.recipe
    taken = machine.nodes.count if nodes is None else nodes
    if taken > machine.nodes.count:
        raise UserError(
            f"{loaded.place('nodes.count')}: --nodes {taken}: cluster {machine.name} has {machine.nodes.count}"
        )
    assumed = Assumptions(segment_tokens=segment_tokens)
    calibration = measure(calibrate or (), machine, assumed)
    rows = alternatives(
        recipe,
        models(recipe, _sequence(recipe.data.path, recipe.data.build), resolved.place),
        Machine(
            machine,
            taken * machine.nodes.devices_per_node,
            assumed,
            calibration.factor,
            resolved.place,
        ),
    )
    if output is PlanFormat.JSON:
        typer.echo(json.dumps(plan_data(machine, rows, assumed, calibration), indent=2))
    else:
        typer.echo(plan_text(machine, rows, assumed, calibration))
    own = rows[0]
    if own.found is None:
        raise LayoutError(own.reason)
    if why := misfit(own.found):
        raise LayoutError(
            f"{resolved.source}: {own.label} does not fit cluster {machine.name}: {why}"
        )


def _sequence(path: str, build: object) -> int:
    """Tokens of a sample: from the recipe, or from the shards where it does not build them."""
    from ekd_nemo.config.data import DataBuild
    from ekd_nemo.sources.manifest import sequence_length

    if isinstance(build, DataBuild):
        return build.sequence_length
    return sequence_length(path)
