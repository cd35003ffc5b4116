"""Marks of phases and steps, written by each rank beside what it does.

A mark is one formatted line and one write call, some 5 microseconds. Phases also poke the node's
sampler over a datagram socket, so that it reads the energy counters there; without a sampler nobody
listens and only the line stays.

Clock: CLOCK_MONOTONIC of the host when the call is made. Around asynchronous CUDA work that is not
when the device did it: synchronise before the mark, or time the stretch with CUDA events and write
a `span`.
Not covered: use from several threads at once.
"""

import json
import socket
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ekd_nemo.records.clock import boot_id, node_name
from ekd_nemo.records.jsonl import JsonlStore
from ekd_nemo.records.lines import SCHEMA_VERSION
from ekd_nemo.records.phases import Phase, as_phase
from ekd_nemo.telemetry.address import marks_address

POKE: Final = b"mark"


class Marks:
    """The marks file of one rank.

    Args:
        path: `telemetry/marks-<rank>.jsonl` of the run; appended to.
        rank: global rank.
        uuids: the devices that this rank occupies, as the sampler names them.
        parallel: index on each axis; the design's axes are tensor, pipeline and data.
        node: this node's name; None: as the sampler finds it.
        attempt: number of this launch, from run.json.
    """

    def __init__(
        self,
        path: Path,
        *,
        rank: int,
        uuids: Sequence[str],
        parallel: Mapping[str, int],
        node: str | None = None,
        attempt: int = 1,
    ) -> None:
        """Open the file; tell the sampler, if there is one, that this process is of the run."""
        self._store = JsonlStore(path)
        self._node = node or node_name()
        self._head = f'{{"schema_version":{SCHEMA_VERSION},"kind":'
        constant = {
            "rank": rank,
            "attempt": attempt,
            "node": self._node,
            "boot_id": boot_id(),
            "uuids": list(uuids),
            "parallel": dict(parallel),
        }
        self._tail = "," + json.dumps(constant, separators=(",", ":"))[1:] + "\n"
        self._open: list[Phase] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._address = marks_address(path.parent, self._node)
        self._poke()

    def _poke(self) -> None:
        try:
            self._socket.sendto(POKE, self._address)
        except (ConnectionRefusedError, BlockingIOError):
            return  # no sampler here, or a stalled one: the line in the file is enough

    def _write(self, kind: str, body: str) -> None:
        self._store.append_text(
            f'{self._head}"{kind}","t_mono_ns":{time.monotonic_ns()}'
            f',"t_wall_ns":{time.time_ns()},{body}{self._tail}'
        )

    def begin(self, phase: Phase) -> None:
        """Time belongs to `phase` from here, until an inner phase begins or `end` is called.

        Raises: ValueError, listing the phases, if it is none.
        """
        as_phase(phase)
        self._write("phase_begin", f'"phase":"{phase}"')
        self._open.append(phase)
        self._poke()

    def end(self) -> None:
        """End the innermost open phase.

        Raises: ValueError if none is open.
        """
        if not self._open:
            raise ValueError("no phase is open")
        self._write("phase_end", f'"phase":"{self._open.pop()}"')
        self._poke()

    @contextmanager
    def phase(self, phase: Phase) -> Generator[None]:
        """`begin` and `end` around a block, whatever happens in it."""
        self.begin(phase)
        try:
            yield
        finally:
            self.end()

    def step(self, *, step: int, tokens: int, tokens_valid: int | None = None) -> None:
        """The end of a training step.

        Args:
            step: its number.
            tokens: non-padding tokens of this rank's data-parallel replica in the step.
            tokens_valid: of those, the ones that carry loss; None if not known.
        """
        valid = "null" if tokens_valid is None else int(tokens_valid)
        self._write("step", f'"step":{int(step)},"tokens":{int(tokens)},"tokens_valid":{valid}')

    def span(self, phase: Phase, *, step: int, duration_ns: int) -> None:
        """A stretch of `phase` within a step, as the device timed it.

        Raises: ValueError, listing the phases, if `phase` is none.
        """
        as_phase(phase)
        self._write(
            "span", f'"phase":"{phase}","step":{int(step)},"duration_ns":{int(duration_ns)}'
        )

    def close(self) -> None:
        """End what is open, innermost first, and close the file."""
        while self._open:
            self.end()
        self._socket.close()
        self._store.close()

    def __enter__(self) -> Self:
        """The marks themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
