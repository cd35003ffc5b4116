"""Reading packed shards: the samples that training, validation and the teacher's cache see."""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ekd_nemo.data.shards import LEARNED, SEGMENTS, TOKENS
from ekd_nemo.errors import DataError
from ekd_nemo.sources.manifest import read_manifest, refuse_damaged_files

PADDING_SEGMENT = -1


def sample_hash(tokens: NDArray[Any], segment_lengths: NDArray[Any]) -> str:
    """What identifies a sample: 32 hex digits over its tokens and its segment lengths.

    Args:
        tokens: [n] integers, without padding.
        segment_lengths: [k] integers that add up to n.
    """
    digest = blake2b(len(tokens).to_bytes(8, "little"), digest_size=16, person=b"ekd-sample")
    digest.update(np.ascontiguousarray(tokens, "<i8").tobytes())
    digest.update(np.ascontiguousarray(segment_lengths, "<i8").tobytes())
    return digest.hexdigest()


class PackedDataset(Dataset[dict[str, Any]]):
    """One split of a folder of shards, padded to the sequence length S.

    A sample is a dict: `tokens` [S] int64; `labels` [S] int64, the next token of the segment;
    `loss_mask` [S] bool, True where the label is to be learned, False at the last token of every
    segment; `position_ids` [S] int64, from 0 in every segment; `segment_ids` [S] int64, from 0, -1
    at padding; `sample_hash` str, see `sample_hash`. Padding holds the pad id in tokens and labels,
    position 0 and a False loss mask.

    Files are memory-mapped and opened again in worker processes.
    """

    def __init__(self, folder: Path | str, split: str) -> None:
        """Open the split `train` or `validation`.

        Raises:
            DataError: if the folder holds no shards, not that split, or fewer samples than its
                manifest says.
        """
        self.manifest = read_manifest(folder)
        if split not in self.manifest["splits"]:
            raise DataError(
                f"{folder}: no split {split}; it has {', '.join(self.manifest['splits'])}"
            )
        self.sequence_length: int = self.manifest["sequence_length"]
        self.pad_id: int = self.manifest["tokenizer"]["pad_id"]
        refuse_damaged_files(Path(folder), self.manifest["files"])
        prefix = str(Path(folder) / split)
        self._tokens, self._segments, self._learned = (
            IndexedDataset(prefix + part) for part in (TOKENS, SEGMENTS, LEARNED)
        )
        expected = self.manifest["splits"][split]["samples"]
        if not len(self._tokens) == len(self._segments) == len(self._learned) == expected:
            raise DataError(
                f"{prefix}.idx: holds {len(self._tokens)} samples, the manifest says {expected}"
            )

    def __len__(self) -> int:
        """The number of packed samples."""
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One padded sample; see the class."""
        index = int(index)
        tokens = _int64(self._tokens[index])
        lengths = _int64(self._segments[index])
        learned = _int64(self._learned[index]) > 0
        if lengths.sum() != len(tokens):
            raise DataError(
                f"sample {index}: its segments add up to {lengths.sum()} tokens, not {len(tokens)}"
            )
        ends = np.cumsum(lengths)
        # Whether the next token belongs to the same segment.
        inside = np.ones(len(tokens), np.bool_)
        inside[ends - 1] = False
        learned_next = np.roll(learned, -1) & inside
        labels = np.where(inside, np.roll(tokens, -1), self.pad_id)
        return {
            "tokens": self._padded(tokens, self.pad_id),
            "labels": self._padded(labels, self.pad_id),
            "loss_mask": self._padded(learned_next, fill=False),
            "position_ids": self._padded(
                np.arange(len(tokens)) - np.repeat(ends - lengths, lengths), 0
            ),
            "segment_ids": self._padded(
                np.repeat(np.arange(len(lengths)), lengths), PADDING_SEGMENT
            ),
            "sample_hash": sample_hash(tokens, lengths),
        }

    def _padded(self, values: NDArray[Any], fill: int) -> torch.Tensor:
        out = np.full(self.sequence_length, fill, values.dtype)
        out[: len(values)] = values
        return torch.from_numpy(out)


def _int64(values: Any) -> NDArray[np.int64]:
    return np.array(values, np.int64)
