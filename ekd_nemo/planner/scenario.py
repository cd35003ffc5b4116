"""A recipe on a cluster as the work of two models: who runs where, on how many ranks, over how many tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ekd_nemo.config.architecture import Architecture, check_layout, read_architecture
from ekd_nemo.config.cluster import Cluster
from ekd_nemo.config.fp8 import fp8_misfit
from ekd_nemo.config.known_models import KNOWN_MODELS
from ekd_nemo.config.layer_map import default_pairs
from ekd_nemo.config.recipe import Parallel, Precision, Recipe
from ekd_nemo.errors import ConfigError, LayoutError
from ekd_nemo.planner.assumptions import Assumptions
from ekd_nemo.planner.flops import Trained, mean_context
from ekd_nemo.planner.layout import Layout
from ekd_nemo.planner.memory import Outputs
from ekd_nemo.planner.timing import Work

Place = Callable[[str], str]


@dataclass(frozen=True)
class Models:
    """The two decoders of a recipe, and the tokens of a sample."""

    student: Architecture
    teacher: Architecture | None
    sequence: int


@dataclass(frozen=True)
class Scenario:
    """What runs.

    Attributes:
        recipe: as planned, with this alternative's placement and precision.
        student: the student's work in a step.
        teacher: the teacher's; None without a teacher, and where its outputs are cached.
        maker: the teacher's work where it fills a cache, over the same global batch on all ranks.
        outputs: what the step needs of the teacher.
        teacher_width: of the teacher's hidden states; 0 without.
    """

    recipe: Recipe
    student: Work
    teacher: Work | None
    maker: Work | None
    outputs: Outputs
    teacher_width: int

    @property
    def ranks(self) -> int:
        """All devices that the run occupies."""
        split = self.teacher is not None and self.placement == "split"
        own = self.teacher.layout.ranks if split and self.teacher is not None else 0
        return self.student.layout.ranks + own

    @property
    def placement(self) -> str:
        """Where the teacher is; `none` without."""
        teacher = self.recipe.teacher
        return (
            "none" if teacher is None or not self.recipe.objective.families else teacher.placement
        )

    @property
    def dense(self) -> bool:
        """Whether the loss takes the teacher's whole distribution, from its final hidden states and its head."""
        response = self.recipe.objective.response
        return response is not None and response.support == "dense" and self.teacher_width > 0

    @property
    def transport(self) -> Precision:
        """How the teacher's outputs travel."""
        teacher = self.recipe.teacher
        assert teacher is not None
        if teacher.split is not None:
            return teacher.split.transport
        return "fp32" if teacher.precision == "fp32" else "bf16"

    @property
    def output_bytes(self) -> int:
        """Of the teacher's outputs for a global batch, as they travel."""
        if self.recipe.teacher is None or not self.teacher_width:
            return 0
        return int(self.outputs.bytes_a_token(self.teacher_width, self.transport) * self.tokens)

    @property
    def tokens(self) -> int:
        """Of a global batch, padding included."""
        return self.student.samples * self.student.sequence


def decoder(path: str, place: str) -> Architecture:
    """The decoder of a local folder or of a known hub id; nothing is downloaded.

    Raises: ConfigError in one line; CheckpointError for a folder that holds no covered decoder.
    """
    if Path(path).is_dir():
        return read_architecture(path)
    if path in KNOWN_MODELS:
        return KNOWN_MODELS[path]
    raise ConfigError(
        f"{place}: {path} is no folder here and none of the models that a plan knows; accepted: a folder with "
        f"config.json, or {', '.join(KNOWN_MODELS)}"
    )


def models(recipe: Recipe, sequence: int, place: Place) -> Models:
    """The decoders that a recipe names.

    Raises: ConfigError, CheckpointError.
    """
    taught = recipe.teacher
    teacher = None if taught is None else decoder(taught.path, place("teacher.path"))
    init = recipe.student.init
    if init.path is not None:
        return Models(decoder(init.path, place("student.init.path")), teacher, sequence)
    assert teacher is not None
    assert init.keep_layers is not None
    return Models(teacher.with_layers(len(init.keep_layers)), teacher, sequence)


def scenario(
    recipe: Recipe, found: Models, cluster: Cluster, ranks: int, a: Assumptions, place: Place
) -> Scenario:
    """Lay a recipe out on `ranks` devices of a cluster.

    Raises: LayoutError, ConfigError: one line with the key at fault and what is accepted.
    """
    taught = recipe.teacher if recipe.objective.families else None
    split = taught.split.ranks if taught is not None and taught.split is not None else 0
    check_precisions(recipe, cluster, place)
    student = _student(recipe, found, ranks - split, ranks, a, place)
    _check_sides(student, "student", place)
    outputs = _outputs(recipe, found)
    if taught is None or found.teacher is None:
        return Scenario(recipe, student, None, None, outputs, 0)
    parallel = taught.parallel or recipe.student.parallel
    own = split if taught.placement == "split" else ranks
    key = "teacher.parallel" if taught.parallel is not None else "student.parallel"
    layout = _layout(found.teacher, parallel, own, "teacher", key, place)
    response = recipe.objective.response
    work = Work(
        found.teacher,
        layout,
        taught.precision,
        found.sequence,
        samples=-(-student.samples // layout.data) * layout.data,
        micro_batch=1,
        context=student.context,
        trained="none",
        # The head is run by the loss, on the student's ranks.
        head_share=0.0 if response is None or response.support == "dense" else a.learned_share,
    )
    _check_sides(work, "teacher", place)
    cached = taught.placement == "cached"
    return Scenario(
        recipe,
        student,
        None if cached else work,
        work if cached else None,
        outputs,
        found.teacher.hidden_size,
    )


def check_precisions(recipe: Recipe, cluster: Cluster, place: Place) -> None:
    """Refuse what the cluster's devices cannot compute.

    Raises: ConfigError in one line.
    """
    device = cluster.nodes.device
    asked: dict[str, Precision] = {"student.precision": recipe.student.precision}
    if recipe.teacher is not None:
        asked["teacher.precision"] = recipe.teacher.precision
    for key, precision in asked.items():
        if precision == "fp8" and device.fp8_tflops is None:
            raise ConfigError(
                f"{place(key)}: {key} is fp8, and {device.name} of cluster {cluster.name} has no FP8; accepted: bf16"
            )
        if precision == "fp32" and device.fp32_tflops is None:
            raise ConfigError(
                f"{place(key)}: {key} is fp32, and cluster {cluster.name} states no nodes.device.fp32_tflops; "
                "accepted: bf16, or a cluster file that states it"
            )


def _student(
    recipe: Recipe, found: Models, ranks: int, world: int, a: Assumptions, place: Place
) -> Work:
    if ranks < 1:
        raise LayoutError(
            f"{place('teacher.split.ranks')}: teacher.split.ranks leaves no device for the student; accepted: "
            f"less than the {world} of the cluster"
        )
    train = recipe.train
    parallel = recipe.student.parallel
    layout = _layout(found.student, parallel, ranks, "student", "student.parallel", place)
    if train.global_batch_size % (layout.data * train.micro_batch_size):
        raise LayoutError(
            f"{place('train.global_batch_size')}: train.global_batch_size {train.global_batch_size} does not divide "
            f"among {layout.data} copies of the student with microbatches of {train.micro_batch_size}; accepted: "
            f"multiples of {layout.data * train.micro_batch_size}, or fewer nodes (--nodes)"
        )
    trained: Trained = "full" if recipe.student.lora is None else "lora"
    segment = min(a.segment_tokens or found.sequence, found.sequence)
    relation = recipe.objective.relation
    return Work(
        found.student,
        layout,
        recipe.student.precision,
        found.sequence,
        train.global_batch_size,
        train.micro_batch_size,
        mean_context([segment]),
        trained,
        a.learned_share,
        recipe.student.recompute,
        1 if relation is not None and relation.scope == "batch" else 0,
    )


def _layout(
    arch: Architecture, parallel: Parallel, ranks: int, who: str, key: str, place: Place
) -> Layout:
    copy = parallel.tensor * parallel.pipeline
    try:
        check_layout(arch, parallel.tensor, parallel.pipeline, who)
    except LayoutError as error:
        raise LayoutError(f"{place(key)}: {key}: {error}") from error
    if ranks % copy:
        raise LayoutError(
            f"{place(key)}: {key}: one copy of the {who} takes tensor {parallel.tensor} x pipeline "
            f"{parallel.pipeline} = {copy} devices, and {ranks} are there; accepted: multiples of {copy}"
        )
    return Layout.of(parallel, ranks)


def _check_sides(work: Work, who: str, place: Place) -> None:
    if work.precision != "fp8":
        return
    reason = fp8_misfit(work.arch, work.layout.tensor, work.tokens)
    if reason:
        raise LayoutError(f"{place(f'{who}.precision')}: {who}.precision: {reason}")


def _outputs(recipe: Recipe, found: Models) -> Outputs:
    objective = recipe.objective
    response, feature, relation = objective.response, objective.feature, objective.relation
    dense = response is not None and response.support == "dense"
    per_sequence = relation is not None and relation.scope == "tokens"
    pairs: tuple[tuple[int, int], ...] = ()
    if feature is not None and feature.pairs is not None:
        pairs = tuple((pair.teacher_layer, pair.student_layer) for pair in feature.pairs)
    elif feature is not None and found.teacher is not None:
        pairs = default_pairs(found.teacher.num_layers, found.student.num_layers)
    # Targets as the loss takes them: an id in eight bytes, its probability in four, and a draw's weight in four.
    each = 16.0 if response is not None and response.support == "sampled" else 12.0
    sparse = each * response.k if response is not None and not dense else 0.0
    return Outputs(final=dense or per_sequence, pairs=pairs, sparse=sparse)
