import hashlib
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from transformers import PreTrainedTokenizerFast

from ekd_nemo.config.data import DataBuild
from ekd_nemo.data import build as build_module
from ekd_nemo.data.build import build
from ekd_nemo.data.command import main, summary
from ekd_nemo.data.packed import PackedDataset, sample_hash
from ekd_nemo.errors import ConfigError, DataError
from ekd_nemo.sources import python_docs
from ekd_nemo.sources.manifest import read_manifest, shards_ready


def settings_for(tokenizer: Path, *sources: dict[str, Any], **others: Any) -> DataBuild:
    given = list(sources) or [{"kind": "python-docs"}]
    options = {"sequence_length": 128, **others}
    return DataBuild.model_validate({"sources": given, "tokenizer": str(tokenizer), **options})


def jsonl(path: Path, records: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"kind": "jsonl", "paths": [str(path)]}


def texts_of(folder: Path, split: str, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Every segment of a split as text."""
    texts = []
    for sample in PackedDataset(folder, split):
        ids, segments = sample["tokens"].numpy(), sample["segment_ids"].numpy()
        texts += [tokenizer.decode(ids[segments == n]) for n in range(segments.max() + 1)]
    return texts


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """Shards of python-docs."""
    out = tmp_path_factory.mktemp("shards") / "python-docs"
    build(settings_for(tokenizer_folder), out)
    return out


def test_of_two_builds_at_once_the_first_stays(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of two launches that share their data; other settings in the same place are refused as ever."""
    source = jsonl(tmp_path / "a.jsonl", [{"text": f"text number {n}"} for n in range(20)])
    settings = settings_for(tokenizer_folder, source, validation_fraction=0.0)
    manifest_of, out = build_module._manifest, tmp_path / "out"

    def after_the_other(first: DataBuild) -> None:
        def last(*given: Any) -> dict[str, Any]:
            monkeypatch.setattr(build_module, "_manifest", manifest_of)
            build(first, out)
            return manifest_of(*given)

        monkeypatch.setattr(build_module, "_manifest", last)

    after_the_other(settings)
    assert build(settings, out) == read_manifest(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "out"]

    out = tmp_path / "else"
    after_the_other(settings.model_copy(update={"seed": 7}))
    with pytest.raises(DataError, match="holds shards built with other settings"):
        build(settings, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "else", "out"]


def test_the_manifest_tells_what_is_there(docs: Path, tokenizer_folder: Path) -> None:
    manifest = read_manifest(docs)
    assert manifest["settings"]["seed"] == manifest["seed"] == 1234
    assert manifest["inputs"]["python-docs"] == python_docs.text_sha256()
    assert manifest["sources"][0]["documents"] == len(python_docs.documents())
    assert manifest["documents_blank"] == 0
    splits = manifest["splits"]
    assert sum(s["documents"] for s in splits.values()) == len(python_docs.documents())
    assert sum(s["tokens"] for s in splits.values()) == manifest["sources"][0]["tokens"]
    assert all(s["tokens"] - s["segments"] == s["loss_tokens"] for s in splits.values())
    assert splits["train"]["fill"] == splits["train"]["tokens"] / (splits["train"]["samples"] * 128)
    assert splits["train"]["fill"] > 0.97
    assert set(manifest["files"]) == {path.name for path in docs.iterdir()} - {"manifest.json"}
    for name, recorded in manifest["files"].items():
        content = (docs / name).read_bytes()
        assert recorded == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert all(
        f"{s['samples']:,} samples" in line
        for s, line in zip(splits.values(), summary(manifest), strict=True)
    )


def test_every_document_is_there_once_on_its_own_side(
    docs: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    held = python_docs.held_out(1234, 0.1)
    rest = [doc for doc in python_docs.documents() if doc not in held]
    for split, expected in (("validation", held), ("train", rest)):
        wanted = Counter(t for doc in expected for t in tokenizer.encode(f"{doc.text}<|im_end|>"))
        dataset = PackedDataset(docs, split)
        assert wanted == Counter(
            int(t) for s in dataset for t in s["tokens"][s["segment_ids"] >= 0]
        )
        texts = texts_of(docs, split, tokenizer)
        short = [
            doc.text + "<|im_end|>" for doc in expected if len(tokenizer.encode(doc.text)) < 128
        ]
        assert short
        assert all(texts.count(text) == 1 for text in short)


def test_megatron_itself_reads_one_document_a_sample(docs: Path) -> None:
    indexed = IndexedDataset(str(docs / "train"))
    manifest = read_manifest(docs)
    assert len(indexed) == manifest["splits"]["train"]["samples"]
    assert (indexed.document_indices == np.arange(len(indexed) + 1)).all()
    assert indexed.sequence_lengths.sum() == manifest["splits"]["train"]["tokens"]
    assert indexed.sequence_lengths.max() <= 128
    assert indexed[0].dtype == np.uint16
    assert (
        PackedDataset(docs, "train")[0]["tokens"][: len(indexed[0])].numpy() == indexed[0]
    ).all()


def test_a_sample_is_what_training_expects(docs: Path) -> None:
    dataset = PackedDataset(docs, "train")
    mixed = next(s for s in dataset if s["segment_ids"].max() > 0 and s["segment_ids"].min() < 0)
    tokens, labels, mask = mixed["tokens"], mixed["labels"], mixed["loss_mask"]
    position, segment = mixed["position_ids"], mixed["segment_ids"]
    assert all(mixed[name].shape == (128,) for name in mixed if name != "sample_hash")
    assert {mixed[n].dtype for n in ("tokens", "labels", "position_ids", "segment_ids")} == {
        torch.int64
    }
    assert mask.dtype == torch.bool
    same = torch.cat([(segment[1:] == segment[:-1]) & (segment[1:] >= 0), torch.tensor([False])])
    assert torch.equal(mask, same)  # plain text: every token with a next one in its segment
    assert torch.equal(labels[mask], tokens[1:][same[:-1]])
    starts = torch.cat([torch.tensor([True]), segment[1:] != segment[:-1]]) & (segment >= 0)
    assert (position[starts] == 0).all()
    assert torch.equal(position[1:][same[:-1]], position[:-1][same[:-1]] + 1)
    padding = segment == -1
    assert (tokens[padding] == dataset.pad_id).all()
    assert (labels[~mask] == dataset.pad_id).all()
    assert not position[padding].any()


def test_worker_processes_of_a_loader_read_the_same(docs: Path) -> None:
    dataset = PackedDataset(docs, "train")
    copy = pickle.loads(pickle.dumps(dataset))  # how spawned workers get it
    assert len(copy) == len(dataset)
    assert all(torch.equal(copy[3][key], dataset[3][key]) for key in ("tokens", "loss_mask"))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_hashes_tell_samples_apart_and_see_the_segments(docs: Path) -> None:
    dataset = PackedDataset(docs, "train")
    hashes = [sample["sample_hash"] for sample in dataset]
    assert len(set(hashes)) == len(dataset)
    # A known value: caches made by earlier versions are found by it.
    assert sample_hash(np.array([1, 2, 3]), np.array([3])) == KNOWN_HASH
    assert sample_hash(np.array([1, 2, 3], np.uint16), np.array([3], np.int32)) == KNOWN_HASH
    assert sample_hash(np.array([1, 2, 3]), np.array([2, 1])) != KNOWN_HASH


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(
    docs: Path, tmp_path: Path, tokenizer_folder: Path
) -> None:
    build(settings_for(tokenizer_folder), tmp_path / "again")
    build(settings_for(tokenizer_folder, seed=5), tmp_path / "other")
    contents = [
        {p.name: p.read_bytes() for p in folder.iterdir()} for folder in (docs, tmp_path / "again")
    ]
    assert contents[0] == contents[1]
    assert (tmp_path / "other" / "train.bin").read_bytes() != contents[0]["train.bin"]


def test_existing_shards_are_kept_or_refused_but_never_touched(
    docs: Path, tokenizer_folder: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in docs.iterdir()}
    assert build(settings_for(tokenizer_folder), docs) == read_manifest(docs)
    with pytest.raises(DataError, match=r"other settings \(seed: there 1234, wanted 7\)"):
        build(settings_for(tokenizer_folder, seed=7), docs)
    assert before == {path: path.stat().st_mtime_ns for path in docs.iterdir()}


def test_a_folder_of_something_else_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"no manifest\.json; expected a folder made by"):
        build(settings_for(tokenizer_folder), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_changed_inputs_and_damaged_files_are_noticed(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(100)])
    settings = settings_for(tokenizer_folder, source)
    out = tmp_path / "out"
    assert not shards_ready(out, settings)
    build(settings, out)
    assert shards_ready(out, settings)
    jsonl(tmp_path / "a.jsonl", [{"text": "changed"}])
    with pytest.raises(DataError, match=r"built before .*a\.jsonl changed"):
        shards_ready(out, settings)
    (tmp_path / "a.jsonl").unlink()  # inputs that are gone cannot speak against the shards
    assert shards_ready(out, settings)
    (out / "train.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.bin: has 0 bytes, the manifest says"):
        shards_ready(out, settings)
    with pytest.raises(DataError, match=r"train\.bin: has 0 bytes"):
        PackedDataset(out, "train")


def test_answers_only_reach_the_loss_mask(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    records = [{"prompt": f"What is {n} + {n}?", "response": f"It is {2 * n}."} for n in range(60)]
    source = jsonl(tmp_path / "a.jsonl", records)
    out = tmp_path / "out"
    manifest = build(settings_for(tokenizer_folder, source, template="chat"), out)
    learned: list[str] = []
    for split in ("train", "validation"):
        for sample in PackedDataset(out, split):
            for segment in range(int(sample["segment_ids"].max()) + 1):
                chosen = sample["loss_mask"] & (sample["segment_ids"] == segment)
                learned.append(tokenizer.decode(sample["labels"][chosen]))
    assert sorted(learned) == sorted(record["response"] + "<|im_end|>" for record in records)
    splits = manifest["splits"].values()
    assert sum(s["loss_tokens"] for s in splits) == sum(len(tokenizer.encode(t)) for t in learned)


def test_equal_documents_fall_on_one_side(
    tmp_path: Path, tokenizer_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": f"text {n % 40}"} for n in range(400)])
    build(settings_for(tokenizer_folder, source, validation_fraction=0.4), tmp_path / "out")
    train, validation = (texts_of(tmp_path / "out", s, tokenizer) for s in ("train", "validation"))
    assert len(train) + len(validation) == 400
    assert not set(train) & set(validation)


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        ([], {}, "no documents with text"),
        ([{"text": " "}], {}, "no documents with text"),
        ([{"text": "a"}], {}, r"none of 1 documents falls into (train|validation) .*seed 1234"),
        (
            [{"text": "a"}, {"title": "b"}],
            {},
            r"a\.jsonl, line 2: no text in fields title; accepted: text",
        ),
    ],
)
def test_bad_input_leaves_nothing_behind(
    tmp_path: Path,
    tokenizer_folder: Path,
    records: list[Any],
    options: dict[str, Any],
    message: str,
) -> None:
    source = jsonl(tmp_path / "a.jsonl", records)
    with pytest.raises(DataError, match=message):
        build(settings_for(tokenizer_folder, source, **options), tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_broken_line_leaves_nothing_behind(tmp_path: Path, tokenizer_folder: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(5000)])
    with (tmp_path / "a.jsonl").open("a") as stream:
        stream.write('{"text": \n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 5001: not valid JSON"):
        build(settings_for(tokenizer_folder, source), tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere"])
def test_a_missing_tokenizer_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"tokenizer {name}: no such folder"):
        build(settings_for(Path(name)).model_copy(update={"tokenizer": name}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match=r"model: holds no tokenizer; expected tokenizer\.json"):
        build(settings_for(tmp_path / "model"), tmp_path / "out")


def test_no_validation_when_none_is_asked_for(tmp_path: Path, tokenizer_folder: Path) -> None:
    build(settings_for(tokenizer_folder, validation_fraction=0), tmp_path / "out")
    with pytest.raises(DataError, match="no split validation; it has train"):
        PackedDataset(tmp_path / "out", "validation")


def test_the_command_builds_and_reports(
    tmp_path: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(tokenizer_folder, max_documents=40)
    main(["build", "--settings", settings.model_dump_json(), "--out", str(tmp_path / "out")])
    assert "train: " in capsys.readouterr().out
    assert len(PackedDataset(tmp_path / "out", "train")) > 0
    with pytest.raises(ConfigError, match="data build: sources: Field required"):
        main(["build", "--settings", '{"tokenizer": "t"}', "--out", str(tmp_path / "x")])


KNOWN_HASH = "51572faec3a0ac473d440582ed1d299b"
