"""Writing packed samples with Megatron's own builder: one indexed document is one packed sample.

Three indexed data sets a split, sample for sample beside one another: `SPLIT` (token ids),
`SPLIT.segments` (the lengths of the sample's segments) and `SPLIT.learned` (1 where the token is a
target of the loss).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import (
    DType,
    IndexedDatasetBuilder,
    get_bin_path,
    get_idx_path,
)

from ekd_nemo.data.packing import Sample

TOKENS, SEGMENTS, LEARNED = "", ".segments", ".learned"


class ShardWriter:
    """Writes the three files pairs of one split; nothing is readable before `finish`."""

    def __init__(self, folder: Path, split: str, vocab_size: int) -> None:
        """Open the files; token ids take two bytes where the vocabulary fits."""
        self._prefix = str(folder / split)
        dtypes = {TOKENS: DType.optimal_dtype(vocab_size), SEGMENTS: np.int32, LEARNED: np.uint8}
        self._builders = {
            part: IndexedDatasetBuilder(get_bin_path(self._prefix + part), dtype=dtype)
            for part, dtype in dtypes.items()
        }
        self._counts = {"samples": 0, "segments": 0, "tokens": 0, "loss_tokens": 0}

    def write(self, sample: Sample) -> None:
        """Append one sample."""
        tokens, learned = np.concatenate(sample.tokens), np.concatenate(sample.learned)
        segments = np.asarray(sample.segment_lengths, np.int32)
        for part, values in (
            (TOKENS, tokens),
            (SEGMENTS, segments),
            (LEARNED, learned.astype(np.uint8)),
        ):
            self._builders[part].add_document(torch.from_numpy(values), [len(values)])
        self._counts["samples"] += 1
        self._counts["segments"] += len(segments)
        self._counts["tokens"] += len(tokens)
        self._counts["loss_tokens"] += int(
            learned.sum() - sum(first[0] for first in sample.learned)
        )

    def finish(self) -> dict[str, Any]:
        """Write the indices; returns the counts of samples, segments, tokens and targets."""
        for part, builder in self._builders.items():
            builder.finalize(get_idx_path(self._prefix + part))
        return dict(self._counts)

    def close(self) -> None:
        """Close the files of a build that is given up."""
        for builder in self._builders.values():
            builder.data_file.close()
