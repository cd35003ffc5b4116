"""Hugging Face data sets as records; a data set's own code is never run."""

from collections.abc import Iterable, Iterator
from typing import Any, cast

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

from ekd_nemo.config.data import HubSource
from ekd_nemo.errors import DataError

_SHUFFLE_BUFFER = 10_000  # rows of a stream that are held at once while its sample is drawn


def hub_records(source: HubSource, seed: int) -> tuple[Iterator[dict[str, Any]], int | None]:
    """The rows of a data set's split and their number, None for a stream.

    With `max_documents` they are a seeded sample: of the whole split, or, streaming, of its
    beginning through a buffer.

    Raises:
        DataError: if the data set, its configuration, revision or split is not to be had or not to
            be read.
    """
    try:
        dataset = load_dataset(
            source.name,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )
        rows, count = _sampled(dataset, source, seed)
    except (OSError, ValueError, DatasetsError) as error:
        raise _unreadable(source, error) from error
    return _guarded(rows, source), count


def _sampled(
    dataset: Dataset | IterableDataset, source: HubSource, seed: int
) -> tuple[Iterable[dict[str, Any]], int | None]:
    if isinstance(dataset, IterableDataset):
        if source.max_documents is None:
            return dataset, None
        shuffled = dataset.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        return shuffled.take(source.max_documents), source.max_documents
    if source.max_documents is not None and source.max_documents < len(dataset):
        dataset = dataset.shuffle(seed=seed).select(range(source.max_documents))
    return cast("Iterable[dict[str, Any]]", dataset), len(dataset)


def _guarded(rows: Iterable[dict[str, Any]], source: HubSource) -> Iterator[dict[str, Any]]:
    try:
        yield from rows
    except (OSError, ValueError, DatasetsError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: HubSource, error: Exception) -> DataError:
    asked = "".join(
        f", {key} {value}"
        for key in ("config", "split", "revision")
        if (value := getattr(source, key))
    )
    return DataError(f"{source.label}{asked}: cannot be read ({' '.join(str(error).split())})")
