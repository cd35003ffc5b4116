"""The documents of a build: each source in its order, or drawn from all by weight."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Literal

from ekd_nemo.config.data import DataBuild, HubSource, JsonlSource, PythonDocsSource, Source
from ekd_nemo.data.hub import hub_records
from ekd_nemo.sources import jsonl, python_docs
from ekd_nemo.sources.document import Document, document_of

Prefer = Literal["text", "conversation"]


def documents_of(settings: DataBuild) -> tuple[Iterator[Document], int | None]:
    """The documents of a build in the order of packing, and their number where it is known.

    Without weights: all documents, source after source. With weights: each document's source is
    drawn with that probability, without replacement, until a source has no more; so the proportions
    hold to the end.

    Raises:
        DataError: for a source that cannot be read, or a record without text.
    """
    prefer: Prefer = "conversation" if settings.template == "chat" else "text"
    opened = [_open(source, settings.seed, prefer) for source in settings.sources]
    streams = [_tagged(stream, position) for position, (stream, _) in enumerate(opened)]
    counts = [count for _, count in opened]
    weights = [source.weight for source in settings.sources if source.weight is not None]
    if weights:
        documents, total = _drawn(streams, weights, settings.seed), None
    else:
        documents = (document for stream in streams for document in stream)
        total = None if None in counts else sum(count for count in counts if count is not None)
    if settings.max_documents is None:
        return documents, total
    return islice(documents, settings.max_documents), min(
        settings.max_documents, total or settings.max_documents
    )


def _drawn(
    streams: list[Iterator[Document]], weights: list[float], seed: int
) -> Iterator[Document]:
    dice = Random(f"{seed}:mixture")
    while True:
        (stream,) = dice.choices(streams, weights)
        document = next(stream, None)
        if document is None:
            return
        yield document


def _tagged(documents: Iterator[Document], position: int) -> Iterator[Document]:
    return (replace(document, source=position) for document in documents)


def _open(source: Source, seed: int, prefer: Prefer) -> tuple[Iterator[Document], int | None]:
    if isinstance(source, HubSource):
        rows, count = hub_records(source, seed)
        return (
            document_of(row, f"{source.label}, row {n}", prefer) for n, row in enumerate(rows)
        ), count
    if isinstance(source, JsonlSource):
        return _jsonl(source, seed, prefer), source.max_documents
    return _python_docs(source, seed)


def _jsonl(source: JsonlSource, seed: int, prefer: Prefer) -> Iterator[Document]:
    paths = tuple(map(Path, source.paths))
    if source.max_documents is not None:
        for path, number, record in jsonl.sampled_records(paths, source.max_documents, seed):
            yield document_of(record, f"{path}, line {number}", prefer)
        return
    for path in paths:
        for number, record in jsonl.records(path):
            yield document_of(record, f"{path}, line {number}", prefer)


def _python_docs(source: PythonDocsSource, seed: int) -> tuple[Iterator[Document], int | None]:
    sections = list(python_docs.documents())
    if source.max_documents is not None and source.max_documents < len(sections):
        chosen = Random(f"{seed}:python-docs").sample(range(len(sections)), source.max_documents)
        sections = [sections[n] for n in sorted(chosen)]
    documents = (Document(f"python-docs, {s.topic}: {s.title}", text=s.text) for s in sections)
    return documents, len(sections)
