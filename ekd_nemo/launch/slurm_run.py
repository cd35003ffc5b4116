"""The run directory of a launch. On a cluster it is made before anything is submitted, and jobs count its attempts."""

from ekd_nemo.config.cluster import Cluster, Stated
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import recipe_text
from ekd_nemo.launch.cache_inputs import cache_inputs
from ekd_nemo.launch.history import note_finished, pending
from ekd_nemo.launch.plan import Plan, Step, last_checkpoint
from ekd_nemo.records.atomic import write_text
from ekd_nemo.records.capture import capture_attempt
from ekd_nemo.records.clock import now
from ekd_nemo.records.identity import (
    Factors,
    RunIdentity,
    Sourced,
    begin_attempt,
    read_identity,
    recipe_hash,
    write_identity,
)
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.manifest import shards_sha256

TRAIN = "train"
_NS_PER_S = 1e9


def identity_of(run: RunDir, recipe: Recipe, cluster: Cluster | None = None) -> RunIdentity:
    """What run.json says of a run before its first attempt."""
    return RunIdentity(
        run_id=run.run_id,
        recipe=recipe.name,
        recipe_hash=recipe_hash(recipe.model_dump(mode="json")),
        method=recipe.method,
        seed=recipe.seed,
        baseline=recipe.baseline,
        factors=Factors() if cluster is None else _factors(cluster),
    )


def _factors(cluster: Cluster) -> Factors:
    power = cluster.power
    return Factors(
        pue=_sourced(power.pue),
        grid_carbon=_sourced(power.grid_carbon),
        price=_sourced(power.price),
    )


def _sourced(stated: Stated | None) -> Sourced | None:
    return None if stated is None else Sourced(**stated.model_dump())


def make_run(run: RunDir, recipe: Recipe, cluster: Cluster | None = None) -> None:
    """Write `recipe.yaml` and `run.json`, unless they are there.

    Raises: RunDirError if the directory holds another experiment.
    """
    run.path.mkdir(parents=True, exist_ok=True)
    if not run.recipe_yaml.is_file():
        write_text(run.recipe_yaml, recipe_text(recipe))
    identity = identity_of(run, recipe, cluster)
    if run.run_json.is_file():
        read_identity(run).check_same(identity, run.run_json)
    else:
        write_identity(run, identity)


def begin(run: RunDir, recipe: Recipe, ranks: int) -> int:
    """Add an attempt, and what it reads: by now shards and cache are built; gives its number.

    Raises: RunDirError if the directory holds another experiment, or began on other shards.
    """
    reads = {"inputs": cache_inputs(recipe), "data_sha256": shards_sha256(recipe.data.path)}
    identity = identity_of(run, recipe).model_copy(update=reads)
    stored = begin_attempt(run, identity, capture_attempt(ranks))
    return stored.attempts[-1].attempt


def note_if_trained(run: RunDir, recipe: Recipe, attempt: int) -> None:
    """Note training as finished once its last checkpoint stands."""
    weights = last_checkpoint(recipe, run) / "weights"
    began_ns = read_identity(run).attempts[-1].t_wall_ns
    if weights.exists():
        step = Step(TRAIN, "", (), products=(weights,))
        note_finished(run, step, attempt, (now().wall_ns - began_ns) / _NS_PER_S)


def parts_to_do(plan: Plan) -> set[str]:
    """Names of the steps that are not finished, preparation included."""
    return {step.name for step in (*plan.preparation, *pending(plan.run, plan.steps))}
