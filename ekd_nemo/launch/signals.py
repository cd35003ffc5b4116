"""Signals that ask a launch to stop, noted until the supervisor takes them."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopWatch:
    """Takes SIGTERM, SIGINT and SIGUSR1 for as long as it is entered; main thread only."""

    def __init__(self) -> None:
        """Nothing has been received yet."""
        self._new: list[signal.Signals] = []
        self._before: dict[signal.Signals, Any] = {}
        self.first: signal.Signals | None = None

    def __enter__(self) -> Self:
        """Install the handlers."""
        self._before = {each: signal.signal(each, self._note) for each in STOP_SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the former handlers back."""
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._new.append(signal.Signals(number))
        self.first = self.first or signal.Signals(number)

    def take(self) -> list[signal.Signals]:
        """What has been received since the last call."""
        taken, self._new = self._new, []
        return taken
