"""Vocabularies of one tokenizer that are stored with unlike numbers of rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import read_resolved
from ekd_nemo.errors import ConfigError
from ekd_nemo.sources.shared_ids import check_shared_ids
from tests.e2e.training import STUDENT, TEACHER, Pair, make_run, write_shards
from tests.unit.teacher.caches import VOCAB, identity, write_cache

IDS = VOCAB - 8


def recipe(folder: Path, **changes: Any) -> Recipe:
    write_shards(folder / "data", vocab=IDS)
    pair = Pair(folder / "teacher", folder / "student", folder / "data")
    return read_resolved(make_run(folder / "run", pair, **changes) / "recipe.yaml")


def check(found: Recipe, student: int, teacher: int) -> None:
    check_shared_ids(
        found, replace(STUDENT, vocab_size=student), replace(TEACHER, vocab_size=teacher)
    )


def test_rows_beyond_the_tokenizers_ids_do_not_matter(tmp_path: Path) -> None:
    found = recipe(tmp_path)
    check(found, IDS, IDS + 100)
    check(found, IDS + 100, IDS)


@pytest.mark.parametrize("sizes", [(IDS - 1, IDS), (IDS, IDS - 1)])
def test_an_id_that_one_of_them_lacks_is_refused(tmp_path: Path, sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer of .* {IDS}; accepted"):
        check(recipe(tmp_path), *sizes)


def test_a_sparse_cache_may_not_hold_ids_that_the_student_lacks(tmp_path: Path) -> None:
    write_cache(tmp_path / "topk", identity())
    write_cache(tmp_path / "hidden", identity("hidden"))
    found = recipe(tmp_path, teacher__placement="cached", teacher__cache={"path": "topk"})

    def reading(name: str) -> Recipe:
        teacher = found.teacher
        assert teacher is not None
        assert teacher.cache is not None
        cache = teacher.cache.model_copy(update={"path": str(tmp_path / name)})
        return found.model_copy(update={"teacher": teacher.model_copy(update={"cache": cache})})

    check(reading("topk"), VOCAB + 8, VOCAB)
    check(reading("hidden"), IDS, VOCAB)
    check(reading("not there yet"), IDS, VOCAB)
    with pytest.raises(ConfigError, match=f"topk: holds ids of .* {VOCAB} entries"):
        check(reading("topk"), IDS, VOCAB)
