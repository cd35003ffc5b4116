"""The same recipe with the teacher placed otherwise and in other precisions, and the best split of the nodes."""

from collections.abc import Iterator
from dataclasses import dataclass

from ekd_nemo.config.cluster import Cluster
from ekd_nemo.config.recipe import CacheBuild, CacheUse, Precision, Recipe, Split, Teacher
from ekd_nemo.errors import EkdError
from ekd_nemo.planner.assumptions import Assumptions
from ekd_nemo.planner.estimate import Estimate, estimate
from ekd_nemo.planner.scenario import Models, Place, scenario


@dataclass(frozen=True)
class Alternative:
    """One row: what it costs, or why it cannot be.

    Attributes:
        label: placement and precision, as `split 24+8 fp8`.
        found: the estimate; None with a reason.
        reason: why there is none.
        chosen: whether it is what the recipe says.
    """

    label: str
    found: Estimate | None
    reason: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Machine:
    """Where and how alternatives are worked out: the cluster, the devices taken, efficiencies, calibration.

    Attributes:
        slower: measured over planned time of calibration runs.
        fuller: measured over planned memory of calibration runs.
    """

    cluster: Cluster
    ranks: int
    assumptions: Assumptions
    slower: float
    place: Place
    fuller: float = 1.0

    def estimate(self, recipe: Recipe, models: Models) -> Estimate:
        """Work a recipe out.

        Raises: EkdError if it does not fit the machine's devices.
        """
        found = scenario(recipe, models, self.cluster, self.ranks, self.assumptions, self.place)
        return estimate(found, self.cluster, self.assumptions, self.slower, self.fuller)


def alternatives(recipe: Recipe, models: Models, machine: Machine) -> list[Alternative]:
    """The recipe's own scenario first, then the other placements in bf16 and fp8."""
    own = _try(_label(recipe, machine.ranks), recipe, models, machine, chosen=True)
    rows = [own]
    for precision in _precisions(recipe, machine):
        if recipe.teacher is None or not recipe.objective.families:
            rows.append(_try(precision, _in_precision(recipe, precision), models, machine))
            continue
        rows.append(
            _try(f"shared {precision}", _placed(recipe, "shared", precision), models, machine)
        )
        rows.append(_best_split(recipe, models, machine, precision))
        rows.append(
            _try(f"cached {precision}", _placed(recipe, "cached", precision), models, machine)
        )
    return [own, *(row for row in rows[1:] if row.label != own.label)]


def _precisions(recipe: Recipe, machine: Machine) -> tuple[Precision, ...]:
    if recipe.student.precision == "fp32":
        return ("fp32",)
    return ("bf16", "fp8") if machine.cluster.nodes.device.fp8_tflops else ("bf16",)


def _label(recipe: Recipe, ranks: int) -> str:
    teacher, precision = recipe.teacher, recipe.student.precision
    if teacher is None or not recipe.objective.families:
        return precision
    both = precision if teacher.precision == precision else f"{teacher.precision}/{precision}"
    if teacher.split is not None:
        return f"split {teacher.split.ranks}+{ranks - teacher.split.ranks} {both}"
    return f"{teacher.placement} {both}"


def _try(
    label: str, recipe: Recipe, models: Models, machine: Machine, chosen: bool = False
) -> Alternative:
    try:
        return Alternative(label, machine.estimate(recipe, models), chosen=chosen)
    except EkdError as error:
        return Alternative(label, None, str(error), chosen)


def _in_precision(recipe: Recipe, precision: Precision) -> Recipe:
    student = recipe.student.model_copy(update={"precision": precision})
    return recipe.model_copy(update={"student": student})


def _placed(recipe: Recipe, placement: str, precision: Precision, ranks: int = 0) -> Recipe:
    """The recipe with its teacher somewhere else; what the recipe does not say of that placement has its defaults."""
    teacher = recipe.teacher
    assert teacher is not None
    split = (teacher.split or Split(ranks=max(1, ranks))).model_copy(update={"ranks": ranks})
    changes: dict[str, object] = {
        "placement": placement,
        "precision": precision,
        "offload": teacher.offload and placement == "shared",
        "split": split if placement == "split" else None,
        "cache": (teacher.cache or _cache(recipe)) if placement == "cached" else None,
    }
    placed: Teacher = teacher.model_copy(update=changes)
    return _in_precision(recipe, precision).model_copy(update={"teacher": placed})


def _cache(recipe: Recipe) -> CacheUse:
    """What a cache of this objective must hold, without loss of information."""
    only_relation = recipe.objective.families == ("relation",)
    build = CacheBuild(kind="embeddings" if only_relation else "hidden")
    return CacheUse(path="cache", build=build)


def _best_split(
    recipe: Recipe, models: Models, machine: Machine, precision: Precision
) -> Alternative:
    """The split with the shortest step of those that fit; where none fits, the least bad with its reason."""
    rows = [
        Alternative(f"split {ranks}+{machine.ranks - ranks} {precision}", found)
        for ranks, found in _splits(recipe, models, machine, precision)
    ]
    if not rows:
        return Alternative(
            f"split {precision}",
            None,
            "no number of teacher nodes leaves whole copies of both models",
        )
    return min(rows, key=_rank)


def _rank(row: Alternative) -> tuple[bool, float]:
    assert row.found is not None
    return not row.found.fits, row.found.step_s


def _splits(
    recipe: Recipe, models: Models, machine: Machine, precision: Precision
) -> Iterator[tuple[int, Estimate]]:
    """Every split by whole nodes (by whole copies of the teacher within one node) that can be laid out."""
    teacher = recipe.teacher
    assert teacher is not None
    per_node = machine.cluster.nodes.devices_per_node
    parallel = teacher.parallel or recipe.student.parallel
    unit = per_node if machine.ranks > per_node else parallel.tensor * parallel.pipeline
    for ranks in range(unit, machine.ranks, unit):
        placed = _placed(recipe, "split", precision, ranks)
        if recipe.train.global_batch_size % max(1, ranks // (parallel.tensor * parallel.pipeline)):
            continue  # the teacher's copies take whole samples
        try:
            yield ranks, machine.estimate(placed, models)
        except EkdError:
            continue
