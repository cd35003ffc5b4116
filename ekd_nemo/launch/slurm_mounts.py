"""Whether a container will see what a recipe names: found out on the login node, before anything waits in a queue.

Not covered: what a site mounts into every container by itself (enroot's mounts.d); naming it in `container.mounts` as
well does no harm. What is not there yet is looked at by its name alone.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ekd_nemo.config.data import JsonlSource
from ekd_nemo.config.resolve import ResolvedRecipe
from ekd_nemo.errors import UserError
from ekd_nemo.launch.models import is_hub_id, model_paths


def named_paths(resolved: ResolvedRecipe) -> dict[str, str]:
    """The recipe's keys that name files or folders, and what they name; hub ids are none."""
    recipe = resolved.recipe
    found = {"data.path": recipe.data.path, **model_paths(resolved)}
    build, lm = recipe.data.build, recipe.evaluation.lm
    if build is not None:
        found["data.build.tokenizer"] = build.tokenizer
        for number, source in enumerate(build.sources):
            if isinstance(source, JsonlSource):
                keys = (f"data.build.sources.{number}.paths.{i}" for i in range(len(source.paths)))
                found |= dict(zip(keys, source.paths, strict=True))
    if recipe.teacher is not None and recipe.teacher.cache is not None:
        found["teacher.cache.path"] = recipe.teacher.cache.path
    if lm is not None and lm.include_path is not None:
        found["evaluation.lm.include_path"] = lm.include_path
    return {key: path for key, path in found.items() if not is_hub_id(path)}


def check_mounted(resolved: ResolvedRecipe, workdir: Path, mounts: Sequence[str]) -> None:
    """Refuse a path of the recipe that no mount brings into the container, also by way of a link.

    Args:
        resolved: the recipe.
        workdir: where its relative paths begin.
        mounts: `SOURCE:TARGET[:FLAGS]`, all of the container's.
    Raises: UserError with the place of the key.
    """
    pairs = [(Path(mount.split(":")[0]), Path(mount.split(":")[1])) for mount in mounts]
    for key, text in named_paths(resolved).items():
        path = Path(os.path.abspath(workdir / text))  # noqa: PTH100 - links stay
        hidden = _hidden(path, pairs)
        if hidden is not None:
            link = "" if hidden == path else f", a link to {hidden}"
            raise UserError(
                f"{resolved.place(key)}: {key}: {text}{link}: the container does not see it; "
                "accepted: a path below the working folder or the runs, or its folder in container.mounts"
            )


def _hidden(path: Path, pairs: Sequence[tuple[Path, Path]]) -> Path | None:
    """What of a path is not in the container: itself, or what it is a link to on the host; None if all is."""
    for source, target in pairs:
        if not path.is_relative_to(target):
            continue
        host = source / path.relative_to(target)
        real = host.resolve()
        if real.is_relative_to(source.resolve()):
            return None
        return None if any(real.is_relative_to(other) for _, other in pairs) else real
    return path
