"""Whether a cache can stand in for the teacher of a recipe; nothing falls back where it cannot."""

from collections.abc import Collection
from pathlib import Path

from ekd_nemo.config.objective import Objective
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.errors import ConfigError, DataError
from ekd_nemo.sources.cache_manifest import SPARSE, CacheIdentity, read_cache_manifest
from ekd_nemo.sources.manifest import read_manifest
from ekd_nemo.sources.weights_identity import weights_fingerprint

SUPPORTS = {"topk": "top_k", "sampled": "sampled"}
KINDS = {"dense": "hidden", "top_k": "topk", "sampled": "sampled"}


def check_cache_fits(recipe: Recipe, layers: Collection[int] | None = None) -> CacheIdentity:
    """Refuse a cache of another teacher, tokenizer or temperature, or of too little.

    The weights are compared where the teacher's folder is at hand; a cache alone trains, too, if
    the head is not needed.

    Args:
        recipe: with placement cached.
        layers: the teacher's layers that the objective needs; None: not known here.

    Returns:
        What the cache holds.

    Raises:
        DataError: no finished cache, or one that does not fit.
        ConfigError: the objective asks for what a cache of this kind does not hold.
    """
    teacher = recipe.teacher
    assert teacher is not None
    assert teacher.cache is not None
    folder = Path(teacher.cache.path)
    identity = read_cache_manifest(folder).identity
    there = read_manifest(recipe.data.path)["tokenizer"].get("sha256")
    if identity.tokenizer != there:
        raise DataError(
            f"{folder}: a cache for the tokenizer {identity.tokenizer[:12]}, the shards of "
            f"{recipe.data.path} are of {str(there)[:12]}; build a cache of these shards"
        )
    if Path(teacher.path).is_dir() and any(Path(teacher.path).glob("*.safetensors")):
        found = weights_fingerprint(Path(teacher.path))
        if found != identity.teacher:
            raise DataError(
                f"{folder}: a cache of another teacher ({identity.teacher}); teacher.path "
                f"{teacher.path} is {found}"
            )
    _check_objective(folder, identity, recipe.objective)
    absent = sorted(set(layers or ()) - set(identity.layers))
    if absent:
        held = ", ".join(map(str, identity.layers)) or "none"
        raise ConfigError(
            f"{folder}: holds teacher layers {held}; the objective needs {absent[0]}, too"
        )
    return identity


def check_build_fits(recipe: Recipe) -> None:
    """Refuse to build a cache that the recipe's own objective could not train from.

    Raises:
        ConfigError: with the kinds that are accepted.
    """
    teacher, objective = recipe.teacher, recipe.objective
    if teacher is None or teacher.cache is None or teacher.cache.build is None:
        return
    accepted = {"topk", "sampled", "hidden", "embeddings"}
    if objective.response is not None:
        accepted &= {KINDS[objective.response.support]}
    if objective.feature is not None:
        accepted &= {"hidden"}
    relation = objective.relation
    if relation is not None:
        # A sample is known by its tokens, which do not say where it carries loss.
        pooled = relation.scope == "batch" and relation.pooling != "masked"
        accepted &= {"hidden", "embeddings"} if pooled else {"hidden"}
    kind = teacher.cache.build.kind
    if kind not in accepted:
        what = ", ".join(sorted(accepted)) or "none: all families of the objective take kind hidden"
        raise ConfigError(f"a cache of kind {kind} cannot serve this objective; accepted: {what}")


def _check_objective(folder: Path, identity: CacheIdentity, objective: Objective) -> None:
    response, relation = objective.response, objective.relation
    if response is not None:
        _check_response(folder, identity, response.support, response.temperature)
    if objective.feature is not None and identity.kind != "hidden":
        raise ConfigError(f"{folder}: kind {identity.kind}; objective.feature takes kind hidden")
    if relation is None:
        return
    pooled = identity.kind == "embeddings" and relation.scope == "batch"
    if pooled and identity.pooling != relation.pooling:
        raise DataError(
            f"{folder}: embeddings pooled by {identity.pooling}; objective.relation.pooling is "
            f"{relation.pooling}"
        )
    if not pooled and not identity.final:
        raise ConfigError(
            f"{folder}: kind {identity.kind} without final hidden states; objective.relation takes "
            "kind embeddings (scope batch), or kind hidden with them"
        )


def _check_response(
    folder: Path, identity: CacheIdentity, support: str, temperature: float
) -> None:
    wanted = SUPPORTS.get(identity.kind, "dense")
    if support != wanted or not (identity.final or identity.kind in SPARSE):
        raise ConfigError(
            f"{folder}: kind {identity.kind}"
            f"{'' if identity.final or identity.kind in SPARSE else ' without final hidden states'}; "
            f"objective.response.support {support} takes kind "
            f"{KINDS[support]}"
        )
    if identity.temperature is not None and identity.temperature != temperature:
        raise DataError(
            f"{folder}: made at temperature {identity.temperature}; objective.response.temperature "
            f"is {temperature}"
        )
