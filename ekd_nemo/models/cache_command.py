"""`python -m ekd_nemo.worker cache build|verify`: what `ekd cache` starts."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ekd_nemo.config.architecture import check_layout
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.errors import EXIT_FAILURE, EXIT_OK, ConfigError


def main(argv: Sequence[str]) -> int:
    """Build or verify a cache.

    Args:
        argv: `build --recipe JSON --run DIR`; JSON is a resolved recipe, DIR a run directory.
            `verify FOLDER`.

    Returns:
        0; 1 when `verify` has found damage.

    Raises: EkdError in one line for what the user can mend.
    """
    parser = argparse.ArgumentParser(prog="python -m ekd_nemo.worker cache", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    building = verbs.add_parser("build")
    building.add_argument("--recipe", required=True)
    building.add_argument("--run", required=True, type=Path)
    verifying = verbs.add_parser("verify")
    verifying.add_argument("folder", type=Path)
    given = parser.parse_args(argv)
    if given.verb == "verify":
        return verify(given.folder)
    build(_recipe(given.recipe), given.run)
    return EXIT_OK


def verify(folder: Path) -> int:
    """Read every byte of a cache and name what is damaged."""
    from ekd_nemo.sources.cache_manifest import read_cache_manifest
    from ekd_nemo.teacher.cache.reader import damages

    found = damages(folder)
    manifest = read_cache_manifest(folder)
    for line in found:
        sys.stdout.write(f"{line}\n")
    size = sum(block.bytes for block in manifest.blocks)
    state = f"{len(found)} damaged" if found else "whole"
    sys.stdout.write(
        f"{folder}: {state}; {len(manifest.blocks)} blocks, {manifest.samples:,} samples, "
        f"{size / 1e6:,.1f} MB\n"
    )
    return EXIT_FAILURE if found else EXIT_OK


def build(recipe: Recipe, run: Path) -> None:
    """Build the cache of a recipe, or go on with it; every rank of the launch calls this."""
    from rich.console import Console

    from ekd_nemo.backend.device import take_device
    from ekd_nemo.data.progress import reporting, silent
    from ekd_nemo.models.cache_build import (
        build_blocks,
        find_samples,
        rows_at_once,
        teacher_ranks,
    )
    from ekd_nemo.models.cache_identity import cache_identity
    from ekd_nemo.models.frozen import shared_teacher
    from ekd_nemo.models.phases import PhaseClock, coordinates, device_uuids
    from ekd_nemo.models.precision import check_teacher_fp8
    from ekd_nemo.models.train import architectures
    from ekd_nemo.models.weights import FolderSource
    from ekd_nemo.records.rundir import RunDir
    from ekd_nemo.sources.manifest import sequence_length
    from ekd_nemo.teacher.cache.writer import CacheWriter
    from ekd_nemo.teacher.layout import Layout

    student, arch = architectures(recipe)
    teacher = recipe.teacher
    if teacher is None or arch is None or teacher.cache is None or teacher.cache.build is None:
        raise ConfigError(f"recipe {recipe.name}: teacher.cache.build is not set")
    rank = int(os.environ.get("RANK", "0"))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    parallel = (teacher.parallel or recipe.student.parallel).model_copy(
        update={"sequence_parallel": False, "virtual_pipeline": None}
    )
    directory = RunDir(run)
    take_device()
    phases = PhaseClock(
        directory.marks(rank),
        rank,
        coordinates(rank, world, parallel),
        device_uuids(int(os.environ.get("LOCAL_RANK", "0"))),
    )
    console = Console()
    try:
        phases.enter("prerun")
        places = find_samples(recipe.data.path, teacher.cache.build.splits)
        writer = CacheWriter(
            Path(teacher.cache.path), cache_identity(recipe, student, arch), list(places)
        )
        if writer.is_finished():
            return
        check_layout(arch, parallel.tensor, parallel.pipeline, "teacher")
        with teacher_ranks(parallel):
            length = sequence_length(recipe.data.path)
            check_teacher_fp8(recipe, arch, length * rows_at_once(recipe))
            layout = Layout.of(parallel, world)
            model = shared_teacher(FolderSource(teacher.path), layout, teacher.precision, length)
            if rank == 0:
                writer.begin()
            phases.enter("teacher_cache")
            total = len(writer.samples) * parallel.tensor * parallel.pipeline // world
            if rank == 0:
                with reporting(console, total, "caching", "samples") as report:
                    build_blocks(writer, model, places, rows_at_once(recipe), phases, report)
                writer.finish()
            else:
                build_blocks(writer, model, places, rows_at_once(recipe), phases, silent)
    finally:
        phases.close()


def _recipe(text: str) -> Recipe:
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        key = ".".join(map(str, detail["loc"])) or "--recipe"
        raise ConfigError(f"cache build: {key}: {detail['msg']}") from error
