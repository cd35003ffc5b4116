import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.config.data import DataBuild
from ekd_nemo.data.documents import documents_of
from ekd_nemo.errors import DataError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Two JSONL files of 300 texts each."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        lines = [json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(300)]
        Path(f"{name}.jsonl").write_text("".join(lines))
    return [{"kind": "jsonl", "paths": [f"{name}.jsonl"]} for name in ("a", "b")]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set folder as the hub would give it, read without a hub."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "table"
    folder.mkdir()
    for split in ("train", "test"):
        lines = [json.dumps({"prompt": f"{split} {n}", "response": "r"}) + "\n" for n in range(100)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


def texts(*sources: dict[str, Any], **options: Any) -> list[str]:
    settings = DataBuild.model_validate({"sources": list(sources), "tokenizer": "t", **options})
    documents, count = documents_of(settings)
    found = [d.text if d.text is not None else d.messages[0].content for d in documents]
    assert count is None or len(found) <= count
    return found


def test_without_weights_everything_comes_in_order(files: list[dict[str, Any]]) -> None:
    assert texts(*files) == [f"a {n}" for n in range(300)] + [f"b {n}" for n in range(300)]


def test_weights_are_shares_until_one_source_ends(files: list[dict[str, Any]]) -> None:
    weighted = [{**files[0], "weight": 3}, {**files[1], "weight": 1}]
    drawn = texts(*weighted, seed=1)
    counts = Counter(text[0] for text in drawn)
    assert counts["a"] == 300  # the one that ends
    # Binomial around 100 with a standard deviation of 11.5; four of them.
    assert 54 < counts["b"] < 146
    assert [text for text in drawn if text[0] == "b"] == [f"b {n}" for n in range(counts["b"])]
    assert drawn == texts(*weighted, seed=1) != texts(*weighted, seed=2)


def test_caps_hold_for_a_source_and_for_all(files: list[dict[str, Any]]) -> None:
    capped = {**files[0], "max_documents": 10}
    some = texts(capped, files[1], seed=1)
    assert Counter(text[0] for text in some) == {"a": 10, "b": 300}
    assert some != texts(capped, files[1], seed=2)
    assert len(texts(*files, max_documents=7)) == 7
    docs = texts({"kind": "python-docs", "max_documents": 5}, seed=1)
    assert len(docs) == 5
    assert docs == texts({"kind": "python-docs", "max_documents": 5}, seed=1)


def test_documents_know_their_source_and_place(files: list[dict[str, Any]]) -> None:
    settings = DataBuild.model_validate({"sources": files, "tokenizer": "t"})
    last = list(documents_of(settings)[0])[-1]
    assert (last.source, last.where) == (1, "b.jsonl, line 300")


def test_nothing_is_read_before_it_is_asked_for(
    files: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counter[str]()

    def counting(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(1, 10**9):
            read[path.name] += 1
            yield number, {"text": "endless"}

    monkeypatch.setattr("ekd_nemo.sources.jsonl.records", counting)
    settings = DataBuild.model_validate({"sources": files, "tokenizer": "t"})
    assert len(list(islice(documents_of(settings)[0], 50))) == 50
    assert read == {"a.jsonl": 50}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_gives_its_split(table: Path, streaming: bool) -> None:
    source = {"kind": "hub", "name": str(table), "streaming": streaming}
    assert texts(source) == [f"train {n}" for n in range(100)]
    assert texts({**source, "split": "test"}) == [f"test {n}" for n in range(100)]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_capped_table_is_a_seeded_sample(table: Path, streaming: bool) -> None:
    source = {"kind": "hub", "name": str(table), "streaming": streaming, "max_documents": 20}
    first = texts(source, seed=1)
    assert len(set(first)) == 20
    assert first == texts(source, seed=1) != texts(source, seed=2)
    assert set(first) != {f"train {n}" for n in range(20)}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "dev"}, "split dev: cannot be read .*(dev|train)"),
        ({"name": "./no-such-table"}, "hub:./no-such-table, split train: cannot be read"),
    ],
)
def test_what_a_table_has_not_is_refused(
    table: Path, streaming: bool, change: dict[str, str], message: str
) -> None:
    source = {"kind": "hub", "name": str(table), "streaming": streaming, **change}
    with pytest.raises(DataError, match=message) as caught:
        texts(source)
    assert "\n" not in str(caught.value)


def test_a_table_of_another_shape_names_its_row(table: Path) -> None:
    (table / "train.jsonl").write_text('{"title": "x"}\n')
    with pytest.raises(DataError, match=r"hub:.*table, row 0: no text in fields title"):
        texts({"kind": "hub", "name": str(table), "streaming": True})
