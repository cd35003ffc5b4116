"""Teacher and student of one tokenizer whose vocabularies are stored with unlike numbers of rows."""

from pathlib import Path

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.errors import ConfigError
from ekd_nemo.sources.cache_manifest import MANIFEST, SPARSE, read_cache_manifest
from ekd_nemo.sources.manifest import read_manifest


def check_shared_ids(recipe: Recipe, student: Architecture, teacher: Architecture) -> None:
    """Refuse vocabularies of unlike sizes where an id of the tokenizer, or of a cache, is in one alone.

    Args:
        recipe: its shards are there.
        student: the decoder.
        teacher: the decoder.

    Raises: ConfigError; DataError if the shards cannot be read.
    """
    if student.vocab_size == teacher.vocab_size:
        return
    shared = min(student.vocab_size, teacher.vocab_size)
    ids = int(read_manifest(recipe.data.path)["tokenizer"]["vocab_size"])
    if ids > shared:
        raise ConfigError(
            f"the student's vocabulary has {student.vocab_size} entries, the teacher's "
            f"{teacher.vocab_size}, and the tokenizer of {recipe.data.path} {ids}; accepted: models "
            "that both have all ids of the tokenizer"
        )
    cache = None if recipe.teacher is None else recipe.teacher.cache
    if cache is None or teacher.vocab_size < student.vocab_size:
        return
    if not (Path(cache.path) / MANIFEST).is_file():
        return
    if read_cache_manifest(cache.path).identity.kind in SPARSE:
        raise ConfigError(
            f"{cache.path}: holds ids of a vocabulary of {teacher.vocab_size} entries, the "
            f"student's has {student.vocab_size}; accepted: a cache of kind hidden"
        )
