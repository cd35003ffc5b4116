"""Prompts from every source, and their seeded choice."""

import json
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.errors import DataError, UserError
from ekd_nemo.evals.prompts import drawn, open_prompts, prompt_of, prompts_sha256


def test_a_text_file_has_a_prompt_a_line_and_an_empty_line_is_an_empty_prompt(
    tmp_path: Path,
) -> None:
    path = tmp_path / "p.txt"
    path.write_text("one\n\nthree\n")
    source = open_prompts(str(path))
    assert source.texts == ("one", "", "three")
    assert source.label == "p.txt"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "p", "response": "r"}, "p"),
        ({"instruction": "i", "context": "c", "response": "r"}, "i\n\nc"),  # Dolly
        ({"instruction": "i", "context": "", "response": "r"}, "i"),
        ({"instruction": "i", "input": "n", "output": "o"}, "i\n\nn"),  # Alpaca
        ({"instruction": "i"}, "i"),
        ({"question": "q", "answer": "a"}, "q"),
        ({"text": "t"}, "t"),
        ({"prompt": ""}, ""),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            "s",
        ),
    ],
)
def test_what_a_record_asks(record: dict[str, Any], expected: str) -> None:
    assert prompt_of(record, "f:1") == expected


def test_a_record_without_a_prompt_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"colour": "red"}) + "\n")
    with pytest.raises(DataError, match=r"p\.jsonl:2: no text in fields colour"):
        open_prompts(str(path))
    path.write_text(json.dumps({"messages": [{"role": "assistant", "content": "a"}]}) + "\n")
    with pytest.raises(DataError, match="only answers"):
        open_prompts(str(path))


@pytest.mark.parametrize("content", ["", "\n", "\n\n"])
def test_a_file_without_a_prompt_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(content)
    with pytest.raises(UserError, match="holds no prompt"):
        open_prompts(str(path))


def test_a_missing_file_is_one_line_with_what_is_accepted() -> None:
    with pytest.raises(UserError, match=r"no such file; accepted: built-in, a file"):
        open_prompts("nowhere.jsonl")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        open_prompts(str(path))


def test_a_data_set_is_left_to_the_worker() -> None:
    source = open_prompts("hub:owner/name:test")
    assert (source.texts, source.hub) == (None, ("owner/name", "test"))
    assert source.sha256 != open_prompts("hub:owner/name").sha256
    with pytest.raises(UserError, match="no name"):
        open_prompts("hub:")


def test_the_built_in_set_is_there_and_has_no_empty_prompt() -> None:
    source = open_prompts("built-in")
    assert source.texts is not None
    assert len(source.texts) >= 16
    assert all(source.texts)


def test_the_choice_is_seeded_and_repeats_only_when_it_must() -> None:
    texts = [str(number) for number in range(10)]
    assert drawn(texts, 6, 1) == drawn(texts, 6, 1) != drawn(texts, 6, 2)
    assert len(set(drawn(texts, 10, 1))) == 10
    assert len(drawn(texts, 25, 1)) == 25
    assert {drawn(texts, 20, 1).count(text) for text in texts} == {2}


def test_the_hash_tells_order_and_borders() -> None:
    assert len({prompts_sha256(t) for t in (["a", "b"], ["b", "a"], ["ab"], ["a", "", "b"])}) == 4
