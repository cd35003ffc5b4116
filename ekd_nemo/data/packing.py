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

_OPEN_SAMPLES = 256  # both bound the memory
_WINDOW = 1024
Segment = tuple[NDArray[np.int64], NDArray[np.bool_]]


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
    """Best fit, longest segments of a window first, over a bounded number of open samples.

    Deterministic: the same documents in the same order give the same samples.
    """

    def __init__(
        self, sequence_length: int, open_samples: int = _OPEN_SAMPLES, window: int = _WINDOW
    ) -> None:
        """Set what a sample holds at most, and how much is weighed at once.

        Args:
            sequence_length: tokens of a sample.
            open_samples: samples that are being filled; beyond it the fullest is finished.
            window: segments that are held back and then placed longest first.
        """
        self._length = sequence_length
        self._max_open = open_samples
        self._window = window
        self._waiting: list[Segment] = []
        self._open: list[Sample] = []  # oldest first

    def add(self, document: Encoded) -> Iterator[Sample]:
        """Pack a document; yields the samples that are finished by then."""
        for start in range(0, len(document.tokens), self._length):
            cut = slice(start, start + self._length)
            self._waiting.append((document.tokens[cut], document.learned[cut]))
        if len(self._waiting) >= self._window:
            yield from self._place_waiting()

    def flush(self) -> Iterator[Sample]:
        """All other samples, those still open last."""
        yield from self._place_waiting()
        yield from self._open
        self._open = []

    def _place_waiting(self) -> Iterator[Sample]:
        for tokens, learned in sorted(self._waiting, key=_size, reverse=True):
            yield from self._place(tokens, learned)
        self._waiting = []

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


def _size(segment: Segment) -> int:
    return len(segment[0])
