"""Building a folder of shards; the same settings give the same bytes."""

import json
import platform
import shutil
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from rich.console import Console

from ekd_nemo.config.data import DataBuild, PythonDocsSource
from ekd_nemo.data.documents import documents_of
from ekd_nemo.data.encoding import Encoded, Encoder
from ekd_nemo.data.packing import Packer
from ekd_nemo.data.progress import reporting
from ekd_nemo.data.shards import ShardWriter
from ekd_nemo.data.tokenizer import describe_tokenizer, load_tokenizer
from ekd_nemo.errors import DataError
from ekd_nemo.sources.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    input_hashes,
    read_manifest,
    sha256_of,
    shards_ready,
)
from ekd_nemo.sources.split import in_validation

TRAIN, VALIDATION = "train", "validation"


def build(settings: DataBuild, out: Path, console: Console | None = None) -> dict[str, Any]:
    """Build shards in the folder `out`, or take those that are there with the same settings.

    The folder appears whole or not at all.

    Args:
        settings: what to build.
        out: the folder of the shards; its parents are made.
        console: where progress goes; standard error by default.

    Returns:
        The manifest.

    Raises:
        DataError: for input that cannot be read, has no text or leaves a split empty, or a folder
            that holds other shards.
    """
    if shards_ready(out, settings):
        return read_manifest(out)
    tokenizer, tokenizer_folder = load_tokenizer(settings.tokenizer)
    encoder = Encoder(
        tokenizer, chat=settings.template == "chat", answers_only=settings.learns_answers_only
    )
    with _appearing_whole(out, settings) as folder:
        counts = _write_splits(
            settings, folder, encoder, len(tokenizer), console or Console(stderr=True)
        )
        manifest = _manifest(settings, folder, counts)
        manifest["tokenizer"] = describe_tokenizer(settings.tokenizer, tokenizer_folder, tokenizer)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return read_manifest(out)


class _Split:
    """The packer, the writer and the counts of one side."""

    def __init__(self, folder: Path, name: str, settings: DataBuild, vocab_size: int) -> None:
        self._writer = ShardWriter(folder, name, vocab_size)
        self._packer = Packer(settings.sequence_length)
        self._length = settings.sequence_length
        self._counts = Counter(documents=0, documents_cut=0, boundary_tokens=0)
        self.by_source: Counter[tuple[int, str]] = Counter()

    def add(self, document: Encoded) -> None:
        self._counts["documents"] += 1
        self._counts["documents_cut"] += len(document.tokens) > self._length
        self._counts["boundary_tokens"] += document.num_boundary
        self.by_source[document.document.source, "documents"] += 1
        self.by_source[document.document.source, "tokens"] += len(document.tokens)
        for sample in self._packer.add(document):
            self._writer.write(sample)

    def finish(self) -> dict[str, Any]:
        for sample in self._packer.flush():
            self._writer.write(sample)
        counts = {**self._counts, **self._writer.finish()}
        capacity = counts["samples"] * self._length
        return {**counts, "fill": counts["tokens"] / capacity if capacity else None}

    def close(self) -> None:
        self._writer.close()


def _write_splits(
    settings: DataBuild, folder: Path, encoder: Encoder, vocab_size: int, console: Console
) -> dict[str, Any]:
    documents, total = documents_of(settings)
    names = (TRAIN, VALIDATION) if settings.validation_fraction > 0 else (TRAIN,)
    splits = {name: _Split(folder, name, settings, vocab_size) for name in names}
    num_blank = 0
    try:
        with reporting(console, total) as report:
            for document in encoder.encode(documents):
                if len(document.tokens):
                    splits[_side(document, settings)].add(document)
                else:
                    num_blank += 1
                report(1, len(document.tokens))
        finished = {name: split.finish() for name, split in splits.items()}
    finally:
        for split in splits.values():
            split.close()
    _refuse_empty(settings, finished)
    by_source: Counter[tuple[int, str]] = Counter()
    for split in splits.values():
        by_source.update(split.by_source)
    return {"splits": finished, "documents_blank": num_blank, "by_source": by_source}


def _side(document: Encoded, settings: DataBuild) -> str:
    held_out = in_validation(document.document.key, settings.seed, settings.validation_fraction)
    return VALIDATION if held_out else TRAIN


def _refuse_empty(settings: DataBuild, splits: dict[str, dict[str, Any]]) -> None:
    total = sum(split["documents"] for split in splits.values())
    labels = ", ".join(source.label for source in settings.sources)
    if total == 0:
        raise DataError(f"{labels}: no documents with text")
    for name, split in splits.items():
        if split["documents"] == 0:
            raise DataError(
                f"{labels}: none of {total} documents falls into {name} with validation_fraction "
                f"{settings.validation_fraction} and seed {settings.seed}; give more documents or "
                "another fraction"
            )


def _manifest(settings: DataBuild, folder: Path, counts: dict[str, Any]) -> dict[str, Any]:
    by_source = counts["by_source"]
    sources = [
        {
            "label": source.label,
            "documents": by_source[position, "documents"],
            "tokens": by_source[position, "tokens"],
            "python_version": platform.python_version()
            if isinstance(source, PythonDocsSource)
            else None,
        }
        for position, source in enumerate(settings.sources)
    ]
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)}
        for p in sorted(folder.iterdir())
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": settings.model_dump(mode="json"),
        "inputs": input_hashes(settings),
        "sources": sources,
        "sequence_length": settings.sequence_length,
        "seed": settings.seed,
        "splits": counts["splits"],
        "documents_blank": counts["documents_blank"],
        "files": files,
    }


@contextmanager
def _appearing_whole(out: Path, settings: DataBuild) -> Generator[Path]:
    """A sibling of `out` that takes its name when the block ends well, and else is removed.

    Launches that share their data may build them at once: of equal settings the first to be ready stays.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = (
        out.parent / f".{out.name}.partial-{token_hex(4)}"
    )  # process ids repeat on other nodes
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(out)
        except OSError:
            if not shards_ready(out, settings):
                raise
            shutil.rmtree(partial)
    except BaseException:
        shutil.rmtree(partial)
        raise
