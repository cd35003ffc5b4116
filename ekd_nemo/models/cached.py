"""The cached teacher of a recipe, on a rank of its training."""

from collections.abc import Iterator, Sequence

from megatron.core import parallel_state

from ekd_nemo.backend.device import compute_device
from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.data.order import step_microbatches
from ekd_nemo.data.packed import PackedDataset
from ekd_nemo.errors import DataError
from ekd_nemo.models.cache_identity import needs_of
from ekd_nemo.models.frozen import head_rows
from ekd_nemo.models.precision import DTYPES
from ekd_nemo.models.weights import FolderSource
from ekd_nemo.sources.cache_fit import check_cache_fits
from ekd_nemo.teacher.cache.reader import CacheReader
from ekd_nemo.teacher.cache.source import CachedTeacher, Standing
from ekd_nemo.teacher.layout import Layout, Place


def cached_teacher(
    recipe: Recipe, student: Architecture, teacher: Architecture, first_step: int
) -> CachedTeacher:
    """Open the cache; Megatron's groups stand.

    The head is loaded from the teacher's folder where the cache keeps final hidden states.

    Raises: DataError or ConfigError if the cache does not fit the recipe.
    """
    assert recipe.teacher is not None
    assert recipe.teacher.cache is not None
    needs = needs_of(recipe, student, teacher)
    identity = check_cache_fits(recipe, needs.layers)
    cut = recipe.student.parallel
    last = parallel_state.is_pipeline_last_stage()
    rank = parallel_state.get_tensor_model_parallel_rank()
    standing = Standing(
        compute_device(),
        DTYPES[recipe.teacher.precision],
        stage=parallel_state.get_pipeline_model_parallel_rank(),
        last_stage=last,
        sequence_rank=rank if cut.sequence_parallel else 0,
        sequence_ranks=cut.tensor if cut.sequence_parallel else 1,
    )
    head = None
    if last and identity.final:
        layout, place = Layout(cut.tensor, cut.pipeline, data=1), Place(rank, 0, cut.pipeline - 1)
        source = FolderSource(recipe.teacher.path)
        head = head_rows(source, layout, place, recipe.teacher.precision, student.vocab_size)
    reader = CacheReader(recipe.teacher.cache.path)
    if identity.final:
        check_held_out(recipe, reader)
    return CachedTeacher(reader, standing, head, coming_samples(recipe, first_step))


def check_held_out(recipe: Recipe, reader: CacheReader) -> None:
    """Refuse, before anything is trained, a cache that validation would miss a sample in.

    Raises: DataError.
    """
    data = PackedDataset(recipe.data.path, "validation")
    count = min(recipe.train.val_samples, len(data))
    absent = sum(not reader.holds(data[index]["sample_hash"]) for index in range(count))
    if absent:
        raise DataError(
            f"{reader.folder}: holds final hidden states, but not of {absent} of the {count} samples that "
            "validation reads; accepted: a cache of both splits (teacher.cache.build.splits)"
        )


def coming_samples(recipe: Recipe, first_step: int) -> Iterator[Sequence[str]]:
    """The hashes of this data-parallel rank's samples, step after step, from `first_step` on."""
    data, train = PackedDataset(recipe.data.path, "train"), recipe.train
    rank = parallel_state.get_data_parallel_rank()
    ranks = parallel_state.get_data_parallel_world_size()
    for step in range(first_step, train.steps):
        share = step_microbatches(len(data), recipe.seed, step, train, rank, ranks)
        yield [data[index]["sample_hash"] for indices in share for index in indices]
