"""Everything that can be known to be wrong before anything is started, one line each."""

import shutil
from pathlib import Path

from ekd_nemo.config.architecture import Architecture, check_layout
from ekd_nemo.config.fit import misfit
from ekd_nemo.config.placement import teacher_parallel
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import ResolvedRecipe
from ekd_nemo.errors import (
    ConfigError,
    LayoutError,
    MissingExtraError,
    UserError,
)
from ekd_nemo.launch.models import architecture, check_token_ids
from ekd_nemo.launch.plan import Plan
from ekd_nemo.meter.choose import MeterSettings, open_meters
from ekd_nemo.meter.protocol import MeterUnavailableError
from ekd_nemo.sources.cache_fit import check_build_fits, check_cache_fits
from ekd_nemo.sources.cache_manifest import MANIFEST as CACHE_MANIFEST
from ekd_nemo.sources.manifest import MANIFEST, read_manifest
from ekd_nemo.sources.shared_ids import check_shared_ids

# A checkpoint holds the weights and Adam's two moments in fp32, 12 bytes a parameter, and bf16 weights in two more.
# The newest is kept and the next is written before it goes. The export has 4 bytes a parameter.
DISK_BYTES_PER_PARAMETER = 2 * 14 + 4
# Frozen weights have no moments: two checkpoints and the export, in fp32 at most; adapters weigh little beside them.
DISK_BYTES_PER_FROZEN = 2 * 4 + 4


def check_settings(resolved: ResolvedRecipe) -> None:
    """Refuse settings that the schema knows and this version does not train with yet.

    Raises: ConfigError.
    """
    teacher, key = resolved.recipe.teacher, "teacher.precision"
    if teacher is not None and teacher.placement == "cached" and teacher.precision == "fp8":
        raise ConfigError(
            f"{resolved.place(key)}: {key} is fp8, which cannot be launched yet with a cached teacher; "
            "accepted: fp32, bf16"
        )


def check_plan(plan: Plan, ask_hub: bool) -> None:
    """Check models, layout, shards, token ids and disk.

    Args:
        plan: the launch.
        ask_hub: fetch the config.json of hub ids; without it they are passed over.

    Raises: UserError of some kind, in one line, for the first thing that is wrong.
    """
    resolved = plan.resolved
    teacher = _teacher(resolved, ask_hub)
    student = _student(resolved, teacher, ask_hub)
    for who, model in (("student", student), ("teacher", teacher)):
        if model is not None:
            _check_layout(resolved, model, who)
            _check_length(resolved, model, who)
    _check_vocabulary(resolved, student, teacher)
    if student is not None:
        _check_fit(resolved, student, teacher)
    if resolved.recipe.data.build is None:
        read_manifest(resolved.recipe.data.path)
    check_token_ids(resolved)
    _check_cache(resolved)
    if student is not None:
        adapted = resolved.recipe.student.lora is not None
        _check_disk(plan.run.path.parent, student.num_parameters(), adapted=adapted)


def _check_cache(resolved: ResolvedRecipe) -> None:
    """Refuse a cache that cannot stand in for the teacher; nor the plan of one that could not."""
    use = None if resolved.recipe.teacher is None else resolved.recipe.teacher.cache
    if use is None:
        return
    built = use.build is None or (Path(use.path) / CACHE_MANIFEST).is_file()
    key = "teacher.cache.path" if built else "teacher.cache.build.kind"
    try:
        if built:
            check_cache_fits(resolved.recipe)
        else:
            check_build_fits(resolved.recipe)
    except UserError as error:
        raise type(error)(f"{resolved.place(key)}: {key}: {error}") from error


def check_extras(recipe: Recipe) -> None:
    """Refuse to start what is not installed; nothing is imported.

    Raises: MissingExtraError; ConfigError for FP8 without Transformer Engine.
    """
    from importlib.util import find_spec

    check_engine(recipe)
    wanted = {"train": "torch"} | ({"eval": "lm_eval"} if recipe.evaluation.lm else {})
    for extra, module in wanted.items():
        if find_spec(module) is None:
            raise MissingExtraError("ekd recipe launch", extra)


def check_engine(recipe: Recipe) -> None:
    """Refuse FP8 on a machine without Transformer Engine; it is not imported.

    Raises: ConfigError.
    """
    from importlib.util import find_spec

    asked = {"student.precision": recipe.student.precision}
    if recipe.teacher is not None:
        asked["teacher.precision"] = recipe.teacher.precision
    for key, precision in asked.items():
        if precision == "fp8" and find_spec("transformer_engine") is None:
            raise ConfigError(
                f"{key} is fp8, and Transformer Engine is not installed here (the NeMo container has it); "
                "accepted: fp32 or bf16"
            )


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


def _teacher(resolved: ResolvedRecipe, ask_hub: bool) -> Architecture | None:
    teacher = resolved.recipe.teacher
    return (
        None if teacher is None else architecture(resolved, "teacher.path", teacher.path, ask_hub)
    )


def _student(
    resolved: ResolvedRecipe, teacher: Architecture | None, ask_hub: bool
) -> Architecture | None:
    init = resolved.recipe.student.init
    if init.path is not None:
        return architecture(resolved, "student.init.path", init.path, ask_hub)
    if teacher is None or init.keep_layers is None:
        return None
    beyond = [layer for layer in init.keep_layers if layer >= teacher.num_layers]
    if beyond:
        raise ConfigError(
            f"{resolved.place('student.init.keep_layers')}: student.init.keep_layers: "
            f"the teacher has no layer {beyond[0]}; accepted: 0 to {teacher.num_layers - 1}"
        )
    return teacher.with_layers(len(init.keep_layers))


def _check_layout(resolved: ResolvedRecipe, model: Architecture, who: str) -> None:
    recipe, key = resolved.recipe, "student.parallel"
    parallel = recipe.student.parallel
    if who == "teacher":
        own = teacher_parallel(recipe)
        if own is None:  # no rank of the run holds it
            return
        key = (
            key if recipe.teacher is None or recipe.teacher.parallel is None else "teacher.parallel"
        )
        parallel = own
    try:
        check_layout(model, parallel.tensor, parallel.pipeline, who)
    except LayoutError as error:
        axis = "pipeline" if "pipeline=" in str(error) else "tensor"
        raise LayoutError(f"{resolved.place(f'{key}.{axis}')}: {key}.{axis}: {error}") from error


def _check_vocabulary(
    resolved: ResolvedRecipe, student: Architecture | None, teacher: Architecture | None
) -> None:
    """Whether both models have all ids of the tokenizer; passed over until there are shards."""
    if student is None or teacher is None:
        return
    if not (Path(resolved.recipe.data.path) / MANIFEST).is_file():
        return
    key = "student.init.path"
    try:
        check_shared_ids(resolved.recipe, student, teacher)
    except ConfigError as error:
        raise ConfigError(f"{resolved.place(key)}: {key}: {error}") from error


def _check_fit(
    resolved: ResolvedRecipe, student: Architecture, teacher: Architecture | None
) -> None:
    wrong = misfit(resolved.recipe, student, teacher)
    if wrong is not None:
        key, message = wrong
        raise ConfigError(f"{resolved.place(key)}: {key}: {message}")


def _check_length(resolved: ResolvedRecipe, model: Architecture, who: str) -> None:
    build = resolved.recipe.data.build
    if build is not None and build.sequence_length > model.max_positions:
        raise ConfigError(
            f"{resolved.place('data.build.sequence_length')}: data.build.sequence_length is {build.sequence_length}; "
            f"accepted: up to {model.max_positions}, the longest that the {who} was made for"
        )


def _check_disk(runs: Path, parameters: int, *, adapted: bool) -> None:
    folder = runs
    while not folder.exists():
        folder = folder.parent
    need = parameters * (DISK_BYTES_PER_FROZEN if adapted else DISK_BYTES_PER_PARAMETER)
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"{runs}: {free / 1e9:.1f} GB are free and checkpoints and export need about {need / 1e9:.1f} GB; "
            "free some, or give another folder with --runs"
        )
