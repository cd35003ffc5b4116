"""The teacher's end of a split run: works ahead of the student, and no further than it may."""

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ekd_nemo.config.recipe import Precision
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.exchange import Exchange, exchange_group
from ekd_nemo.parallel.frozen_stage import FrozenStage
from ekd_nemo.parallel.split_teacher import transport_of
from ekd_nemo.parallel.teacher_pass import Ticks, forward_tick
from ekd_nemo.teacher.joint import Joint
from ekd_nemo.teacher.layout import Layout, Unit, deal, keys_by_stage, transfers
from ekd_nemo.teacher.source import TeacherNeeds
from ekd_nemo.teacher.transport import encode


@dataclass(frozen=True)
class Pass:
    """One forward pass over a global batch.

    Attributes:
        num_microbatches: of each data-parallel rank of the student.
        needs: what the student asks for.
        read: gives a microbatch.
    """

    num_microbatches: int
    needs: TeacherNeeds
    read: Callable[[Unit], Microbatch]


@dataclass
class _Sent:
    """The messages of one pass, kept until they have been taken."""

    messages: list[tuple[Any, Tensor]] = field(default_factory=list)


class SplitServer:
    """Works pass after pass, and sends every output straight to the ranks that need it.

    A message is taken when the student's rank asks for it. Before a pass begins, all but the last
    `depth - 1` finished passes have been taken: so at most `depth` global batches exist ahead of the
    student's, the one in the making included.
    """

    def __init__(
        self,
        joint: Joint,
        stage: FrozenStage,
        student: Layout,
        transport: Precision,
        depth: int,
        busy: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Hold the teacher's part on this rank; all the teacher's ranks together.

        Args:
            joint: to the student's ranks.
            stage: filled and frozen.
            student: the student's layout.
            transport: how hidden states travel.
            depth: global batches ahead of the student.
            busy: entered while this rank computes.
        """
        self._joint, self._stage, self._student = joint, stage, student
        self._transport, self._depth, self._busy = transport, depth, busy
        self._rank, self._waiting = dist.get_rank(), deque[_Sent]()
        self._group = exchange_group()

    def serve(self, passes: Iterable[Pass]) -> None:
        """Work all passes and return when the last message has been taken.

        Raises: RunError if the connection breaks.
        """
        for each in passes:
            while len(self._waiting) >= self._depth:
                self._take_oldest()
            with self._busy():
                self._waiting.append(self._run(each))
        while self._waiting:
            self._take_oldest()

    def _take_oldest(self) -> None:
        for work, _ in self._waiting[0].messages:
            try:
                _wait_on_host(work)
            except RuntimeError as error:
                raise self._joint.broken(error) from error
        self._waiting.popleft()

    def _run(self, each: Pass) -> _Sent:
        teacher, place = self._stage.layout, self._stage.place
        wants = keys_by_stage(each.needs, self._student.pipeline)
        keys = self._stage.keys(frozenset[int]().union(*wants))
        shares = deal(each.num_microbatches, self._student.data, teacher.data)
        ticks, own = Ticks(shares, teacher.pipeline), _Reader(each.read)
        sent, incoming = _Sent(), None
        for tick in range(len(ticks)):
            exchange = Exchange(self._group)
            unit, made, incoming = forward_tick(
                self._stage, ticks, tick, own, incoming, keys, each.needs.pooling, exchange
            )
            if unit is not None:
                for going in transfers(
                    teacher,
                    self._student,
                    wants,
                    unit,
                    (place.data, place.pipeline),
                    keys,
                    same_ranks=False,
                ):
                    if going.source == self._rank:
                        index, parts = going.part
                        part = made[going.key].chunk(parts)[index]
                        message = encode(part, transport_of(going.key, self._transport))
                        sent.messages.append((self._joint.send(message, going.target), message))
            exchange.run()
        return sent


class _Reader(dict[Unit, Microbatch]):
    """Reads a microbatch when it is first asked for."""

    def __init__(self, read: Callable[[Unit], Microbatch]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, unit: Unit) -> Microbatch:
        self[unit] = self._read(unit)
        return self[unit]


def _wait_on_host(work: Any) -> None:
    """Until the message has gone, by this process's clock and not only by the device's queue."""
    if not torch.cuda.is_available():
        work.wait()
        return
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work.wait()
    stream.synchronize()
