"""The processes for which a sampler lives: when all have been gone for a while, the run is over."""

import os
import selectors
import time


class Watch:
    """A set of processes, each followed by its pidfd, which cannot be reused for another.

    Args:
        selector: gets the pidfds; when one is readable, call `ended`.
        linger_s: how long after the last one's end the run is over; a relaunch may come meanwhile.
    """

    def __init__(self, selector: selectors.BaseSelector, linger_s: float) -> None:
        """Follow nobody yet: without anybody to follow, the run is never over."""
        self._selector = selector
        self._linger_s = linger_s
        self._pid_by_fd: dict[int, int] = {}
        self._alone_since_s: float | None = None

    def add(self, pid: int) -> bool:
        """Follow a process; False if it is gone or cannot be seen (another pid namespace)."""
        if pid <= 0 or pid in self._pid_by_fd.values():
            return pid > 0
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            if not self._pid_by_fd:
                self._alone_since_s = time.monotonic()
            return False
        self._pid_by_fd[fd] = pid
        self._selector.register(fd, selectors.EVENT_READ, self)
        self._alone_since_s = None
        return True

    def ended(self, fd: int) -> None:
        """The process of this pidfd has ended."""
        self._selector.unregister(fd)
        os.close(fd)
        del self._pid_by_fd[fd]
        if not self._pid_by_fd:
            self._alone_since_s = time.monotonic()

    def is_over(self) -> bool:
        """Whether all followed processes have been gone for long enough."""
        since_s = self._alone_since_s
        return since_s is not None and time.monotonic() - since_s >= self._linger_s
