"""What the cache of a recipe holds, from the recipe, its teacher and its shards."""

from pathlib import Path
from typing import Any

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import CacheBuild, Recipe
from ekd_nemo.errors import ConfigError
from ekd_nemo.models.terms import loss_plan
from ekd_nemo.models.weights import resolve_folder
from ekd_nemo.sources.cache_manifest import CacheIdentity
from ekd_nemo.sources.manifest import read_manifest
from ekd_nemo.sources.weights_identity import weights_fingerprint
from ekd_nemo.teacher.source import TeacherNeeds

BLOCK_BYTES = 16 << 20
MOST_SAMPLES = 64  # of a block: what a killed build loses at most


def needs_of(recipe: Recipe, student: Architecture, teacher: Architecture) -> TeacherNeeds:
    """What a training step of the recipe asks of its teacher, wherever the student's layers are."""
    return loss_plan(recipe.objective, student, teacher).needs(student.num_layers, 1, None)


def cache_identity(recipe: Recipe, student: Architecture, teacher: Architecture) -> CacheIdentity:
    """The identity of the cache that `teacher.cache.build` describes.

    Raises:
        ConfigError: without that section, or where the kind keeps nothing of what is needed.
    """
    section = None if recipe.teacher is None else recipe.teacher.cache
    if recipe.teacher is None or section is None or section.build is None:
        raise ConfigError(
            f"recipe {recipe.name}: teacher.cache.build is not set; accepted: a recipe with "
            "teacher.placement cached, teacher.cache.path and teacher.cache.build.kind"
        )
    manifest = read_manifest(Path(recipe.data.path))
    build, needs = section.build, needs_of(recipe, student, teacher)
    return CacheIdentity(
        teacher=weights_fingerprint(resolve_folder(recipe.teacher.path)),
        tokenizer=str(manifest["tokenizer"].get("sha256")),
        vocab_size=teacher.vocab_size,
        hidden_size=teacher.hidden_size,
        precision=recipe.teacher.precision,
        kind=build.kind,
        block_samples=_block_samples(build, needs, teacher, manifest["sequence_length"]),
        **_settings(recipe, build, needs),
    )


def _settings(recipe: Recipe, build: CacheBuild, needs: TeacherNeeds) -> dict[str, Any]:
    """What only one kind has."""
    response, relation = recipe.objective.response, recipe.objective.relation
    if build.kind == "hidden":
        final = needs.distribution or needs.final or needs.pooling is not None
        layers = tuple(sorted(needs.layers))
        if not final and not layers:
            raise ConfigError(f"recipe {recipe.name}: its objective needs nothing of a teacher")
        level = 0 if build.storage == "int8" else 1
        return {"final": final, "layers": layers, "storage": build.storage, "zstd_level": level}
    if build.kind == "embeddings":
        return {"pooling": "mean" if relation is None else relation.pooling}
    settings: dict[str, Any] = {
        "temperature": 1.0 if response is None else response.temperature,
        "probability_bits": build.probability_bits,
    }
    if build.kind == "topk":
        return settings | {"k": build.k, "min_probability": build.min_probability}
    return settings | {"samples": build.samples, "seed": build.seed}


def _block_samples(
    build: CacheBuild, needs: TeacherNeeds, teacher: Architecture, length: int
) -> int:
    """As the recipe says, or as many as make about 16 MiB."""
    if build.block_samples is not None:
        return build.block_samples
    bytes_per_token = {
        "topk": 3 * build.k,
        "sampled": 2 * build.samples,
        "hidden": 4 * teacher.hidden_size * (1 + len(needs.layers)),
        "embeddings": 4,
    }[build.kind]
    return max(1, min(MOST_SAMPLES, BLOCK_BYTES // (bytes_per_token * length)))
