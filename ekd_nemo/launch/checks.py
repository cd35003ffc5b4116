"""Everything that can be known to be wrong before anything is started, one line each."""

import re
import shutil
from pathlib import Path

from ekd_nemo.config.architecture import Architecture, check_layout, read_architecture
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import ResolvedRecipe
from ekd_nemo.errors import (
    CheckpointError,
    ConfigError,
    EkdError,
    LayoutError,
    MissingExtraError,
    UserError,
)
from ekd_nemo.launch.plan import Plan
from ekd_nemo.meter.choose import MeterSettings, open_meters
from ekd_nemo.meter.protocol import MeterUnavailableError
from ekd_nemo.sources.manifest import read_manifest

LAUNCHABLE = ("sft", "response")
# A checkpoint holds the weights and Adam's two moments in fp32, 12 bytes a parameter, and bf16 weights in two more.
# The newest is kept and the next is written before it goes. The export has 4 bytes a parameter.
DISK_BYTES_PER_PARAMETER = 2 * 14 + 4
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def check_method(resolved: ResolvedRecipe) -> None:
    """Refuse methods that this version trains not yet.

    Raises: ConfigError.
    """
    method = resolved.recipe.method
    if method not in LAUNCHABLE:
        raise ConfigError(
            f"{resolved.place('method')}: method {method} cannot be launched yet; accepted: {', '.join(LAUNCHABLE)}"
        )


def check_plan(plan: Plan) -> None:
    """Check models, layout, shards and disk.

    Raises: UserError of some kind, in one line, for the first thing that is wrong.
    """
    resolved = plan.resolved
    teacher = _teacher(resolved)
    student = _student(resolved, teacher)
    for who, architecture in (("student", student), ("teacher", teacher)):
        if architecture is not None:
            _check_layout(resolved, architecture, who)
            _check_length(resolved, architecture, who)
    if resolved.recipe.data.build is None:
        read_manifest(resolved.recipe.data.path)
    if student is not None:
        _check_disk(plan.run.path.parent, student)


def check_extras(recipe: Recipe) -> None:
    """Refuse to start what is not installed; nothing is imported.

    Raises: MissingExtraError.
    """
    from importlib.util import find_spec

    wanted = {"train": "torch"} | ({"eval": "lm_eval"} if recipe.evaluation.lm else {})
    for extra, module in wanted.items():
        if find_spec(module) is None:
            raise MissingExtraError("ekd recipe launch", extra)


def check_meter(resolved: ResolvedRecipe) -> None:
    """Refuse a meter that the recipe names and this machine does not have.

    Raises: MeterUnavailableError.
    """
    energy = resolved.recipe.energy
    if energy.meter == "auto":
        return
    settings = MeterSettings(meter=energy.meter, cpu_tdp_w=energy.cpu_tdp_w)
    try:
        opened = open_meters(settings)
    except MeterUnavailableError as error:
        raise MeterUnavailableError(
            f"{resolved.place('energy.meter')}: energy.meter: {error}; auto takes what there is"
        ) from error
    for meter in opened.meters:
        meter.close()


def is_hub_id(text: str) -> bool:
    """Whether a path is to be read as a hub id: `owner/name`, and no folder `owner` is here."""
    return _HUB_ID.fullmatch(text) is not None and not Path(text).parent.exists()


def _architecture(resolved: ResolvedRecipe, key: str, path: str) -> Architecture | None:
    """The model of a folder; None for a hub id, which the worker looks at."""
    if is_hub_id(path):
        return None
    try:
        return read_architecture(path)
    except EkdError as error:
        hint = ""
        if not Path(path).exists() and Path(path).parts[:2] == ("assets", "teacher"):
            hint = " (make it with: python tools/make_teacher.py)"
        raise CheckpointError(f"{resolved.place(key)}: {key}: {error}{hint}") from error


def _teacher(resolved: ResolvedRecipe) -> Architecture | None:
    teacher = resolved.recipe.teacher
    return None if teacher is None else _architecture(resolved, "teacher.path", teacher.path)


def _student(resolved: ResolvedRecipe, teacher: Architecture | None) -> Architecture | None:
    init = resolved.recipe.student.init
    if init.path is not None:
        return _architecture(resolved, "student.init.path", init.path)
    if teacher is None or init.keep_layers is None:
        return None
    beyond = [layer for layer in init.keep_layers if layer >= teacher.num_layers]
    if beyond:
        raise ConfigError(
            f"{resolved.place('student.init.keep_layers')}: student.init.keep_layers: "
            f"the teacher has no layer {beyond[0]}; accepted: 0 to {teacher.num_layers - 1}"
        )
    return teacher.with_layers(len(init.keep_layers))


def _check_layout(resolved: ResolvedRecipe, architecture: Architecture, who: str) -> None:
    parallel = resolved.recipe.student.parallel
    try:
        check_layout(architecture, parallel.tensor, parallel.pipeline, who)
    except LayoutError as error:
        axis = "pipeline" if "pipeline=" in str(error) else "tensor"
        key = f"student.parallel.{axis}"
        raise LayoutError(f"{resolved.place(key)}: {key}: {error}") from error


def _check_length(resolved: ResolvedRecipe, architecture: Architecture, who: str) -> None:
    build = resolved.recipe.data.build
    if build is not None and build.sequence_length > architecture.max_positions:
        raise ConfigError(
            f"{resolved.place('data.build.sequence_length')}: data.build.sequence_length is {build.sequence_length}; "
            f"accepted: up to {architecture.max_positions}, the longest that the {who} was made for"
        )


def _check_disk(runs: Path, student: Architecture) -> None:
    folder = runs
    while not folder.exists():
        folder = folder.parent
    need, free = student.num_parameters() * DISK_BYTES_PER_PARAMETER, shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{runs}: {free / 1e9:.1f} GB are free and checkpoints and export need about {need / 1e9:.1f} GB; "
            "free some, or give another folder with --runs"
        )
