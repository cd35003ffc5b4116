"""Packing: from documents of any length to samples of at most `sequence_length` tokens.

Documents that fit are never split. A longer document is cut into consecutive segments of
`sequence_length` tokens; only its last segment shares a sample with others. No token is dropped or
repeated. The first token of a segment is never predicted, so each cut costs one target.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ekd_nemo.data.encoding import Encoded

_OPEN_SAMPLES = 256  # samples that are filled at once; bounds the memory


@dataclass
class Sample:
    """A packed sample: segments that do not see each other."""

    tokens: list[NDArray[np.int64]] = field(default_factory=list)
    learned: list[NDArray[np.bool_]] = field(default_factory=list)
    room: int = 0

    @property
    def segment_lengths(self) -> list[int]:
        """The number of tokens of each segment, in order."""
        return [len(segment) for segment in self.tokens]

    def add(self, tokens: NDArray[np.int64], learned: NDArray[np.bool_]) -> None:
        """Append a segment that fits."""
        self.tokens.append(tokens)
        self.learned.append(learned)
        self.room -= len(tokens)


class Packer:
    """Best fit over a bounded number of open samples; deterministic."""

    def __init__(self, sequence_length: int, open_samples: int = _OPEN_SAMPLES) -> None:
        """Set the number of tokens that a sample holds at most."""
        self._length = sequence_length
        self._max_open = open_samples
        self._open: list[Sample] = []  # oldest first

    def add(self, document: Encoded) -> Iterator[Sample]:
        """Pack a document; yields the samples that are finished by it."""
        for start in range(0, len(document.tokens), self._length):
            cut = slice(start, start + self._length)
            yield from self._place(document.tokens[cut], document.learned[cut])

    def flush(self) -> Iterator[Sample]:
        """The samples that are still open, oldest first."""
        yield from self._open
        self._open = []

    def _place(self, tokens: NDArray[np.int64], learned: NDArray[np.bool_]) -> Iterator[Sample]:
        fitting = [sample for sample in self._open if sample.room >= len(tokens)]
        if fitting:
            sample = min(fitting, key=_room)
        else:
            if len(self._open) == self._max_open:
                fullest = min(self._open, key=_room)
                self._close(fullest)
                yield fullest
            sample = Sample(room=self._length)
            self._open.append(sample)
        sample.add(tokens, learned)
        if sample.room == 0:
            self._close(sample)
            yield sample

    def _close(self, sample: Sample) -> None:
        self._open = [other for other in self._open if other is not sample]


def _room(sample: Sample) -> int:
    return sample.room
