"""Token ids are compared by what they stand for, whatever else a tokenizer's files say."""

import json
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.errors import DataError
from ekd_nemo.sources.token_map import token_map_sha256


def _write(folder: Path, vocab: Any, added: list[dict[str, Any]], **rest: Any) -> Path:
    folder.mkdir()
    tokenizer = {"model": {"vocab": vocab}, "added_tokens": added, **rest}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_order_and_other_settings_do_not_matter_but_ids_do(tmp_path: Path) -> None:
    end = [{"id": 2, "content": "<end>", "special": True}]
    first = _write(tmp_path / "1", {"a": 0, "b": 1}, end)
    same = _write(tmp_path / "2", {"b": 1, "a": 0}, end, normalizer=None)
    swapped = _write(tmp_path / "3", {"a": 1, "b": 0}, end)
    as_list = _write(tmp_path / "4", [["a", -1.0], ["b", -2.0]], end)
    assert token_map_sha256(first) == token_map_sha256(same) == token_map_sha256(as_list)
    assert token_map_sha256(first) != token_map_sha256(swapped)


def test_an_added_token_counts(tmp_path: Path) -> None:
    bare = _write(tmp_path / "1", {"a": 0}, [])
    more = _write(tmp_path / "2", {"a": 0}, [{"id": 1, "content": "<pad>"}])
    assert token_map_sha256(bare) != token_map_sha256(more)


def test_a_folder_without_tokenizer_has_no_map(tmp_path: Path) -> None:
    assert token_map_sha256(tmp_path) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 1}', '{"model": {"vocab": 3}}'])
def test_a_broken_tokenizer_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read as a tokenizer"):
        token_map_sha256(tmp_path)
