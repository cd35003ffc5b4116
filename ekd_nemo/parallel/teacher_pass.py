"""One forward-only pass of a teacher over a global batch, in a layout of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ekd_nemo.losses.pooling import PoolingKind
from ekd_nemo.parallel.batch import TENSORS, Microbatch
from ekd_nemo.parallel.exchange import Exchange
from ekd_nemo.parallel.frozen_stage import FrozenStage
from ekd_nemo.teacher.layout import (
    EMBEDDINGS,
    Layout,
    Place,
    Transfer,
    Unit,
    deal,
    keys_by_stage,
    transfers,
)
from ekd_nemo.teacher.source import TeacherNeeds

Found = dict[tuple[int, int], Tensor]  # (microbatch, key): this rank's part of that output


@dataclass(frozen=True)
class Ticks:
    """Which stage of which copy works which unit when: stage p is p ticks behind the first.

    Attributes:
        shares: the units of each copy of the teacher.
        stages: of the teacher.
    """

    shares: list[list[Unit]]
    stages: int

    def __len__(self) -> int:
        """Ticks until everything is done."""
        return max(map(len, self.shares)) + self.stages - 1

    def unit(self, tick: int, copy: int, stage: int) -> Unit | None:
        """What a stage works in a tick; None when it idles."""
        turn = tick - stage
        return self.shares[copy][turn] if 0 <= turn < len(self.shares[copy]) else None


def forward_tick(
    stage: FrozenStage,
    ticks: Ticks,
    tick: int,
    own: Mapping[Unit, Microbatch],
    incoming: Tensor | None,
    keys: Sequence[int],
    pooling: PoolingKind | None,
    exchange: Exchange,
) -> tuple[Unit | None, dict[int, Tensor], Tensor | None]:
    """Run what this rank's stage has to do in a tick, and add what passes between stages.

    Returns:
        The unit worked, its outputs, and the tensor in which the next tick's input arrives once
        `exchange` has run.
    """
    layout, place = stage.layout, stage.place
    unit, made = ticks.unit(tick, place.data, place.pipeline), dict[int, Tensor]()
    if unit is not None:
        out, made = stage.forward(own[unit], incoming, keys, pooling)
        if not stage.last:
            exchange.send(out, layout.rank(Place(place.tensor, place.data, place.pipeline + 1)))
    before = None if stage.first else ticks.unit(tick, place.data, place.pipeline - 1)
    if before is None:
        return unit, made, None
    size, length = own[before].tokens.shape
    rows = length // layout.tensor if layout.sequence_parallel else length
    arriving = torch.empty(
        rows, size, stage.width, dtype=stage.dtype, device=own[before].tokens.device
    )
    exchange.receive(arriving, layout.rank(Place(place.tensor, place.data, place.pipeline - 1)))
    return unit, made, arriving


class SharedPass:
    """Passes of a teacher on the student's own ranks.

    In every tick each stage works one microbatch; then all ranks exchange, in one batch of
    messages that all have worked out alike: hidden states to the next stage, outputs to the ranks
    of the student that need them. So nothing can deadlock, and an output leaves the teacher's rank
    in the tick in which it is made.

    Memory: this rank's outputs of the global batch, and the activations of one microbatch.
    """

    def __init__(self, stage: FrozenStage, student: Layout, group: dist.ProcessGroup) -> None:
        """Hold the teacher's part on this rank, the student's layout and a group of all ranks."""
        self._stage, self._student, self._group = stage, student, group
        self._rank = dist.get_rank()
        self._data = student.place(self._rank).data

    def run(self, batches: Sequence[Microbatch], needs: TeacherNeeds) -> Found:
        """The outputs that this rank needs of its own microbatches.

        Args:
            batches: this rank's share of the global batch, as many on every rank.
            needs: the same on every rank.
        """
        teacher, stage = self._stage.layout, self._stage
        wants = keys_by_stage(needs, self._student.pipeline)
        wanted = frozenset[int]().union(*wants)
        ticks = Ticks(deal(len(batches), self._student.data, teacher.data), teacher.pipeline)
        own = self._fetch(batches, ticks.shares)
        found: Found = {}
        incoming: Tensor | None = None
        for tick in range(len(ticks)):
            exchange = Exchange(self._group)
            keys = stage.keys(wanted)
            _, made, incoming = forward_tick(
                stage, ticks, tick, own, incoming, keys, needs.pooling, exchange
            )
            for each in self._transfers(ticks, tick, wants, wanted):
                self._hand_over(exchange, each, made, batches, found)
            exchange.run()
        return found

    def _transfers(
        self, ticks: Ticks, tick: int, wants: Sequence[frozenset[int]], wanted: frozenset[int]
    ) -> list[Transfer]:
        """Transfers of this tick in which this rank has a part, in one order for all ranks."""
        teacher, place = self._stage.layout, self._stage.place
        found: list[Transfer] = []
        for copy in range(teacher.data):
            for stage in range(teacher.pipeline):
                unit = ticks.unit(tick, copy, stage)
                here = (copy, stage) == (place.data, place.pipeline)
                if unit is None or not (here or unit.data == self._data):
                    continue
                keys = self._stage.keys(wanted, stage)
                found += transfers(
                    teacher, self._student, wants, unit, (copy, stage), keys, same_ranks=True
                )
        return [each for each in found if self._rank in (each.source, each.target)]

    def _hand_over(
        self,
        exchange: Exchange,
        each: Transfer,
        made: dict[int, Tensor],
        batches: Sequence[Microbatch],
        found: Found,
    ) -> None:
        index, parts = each.part
        place = (each.unit.index, each.key)
        if self._rank == each.source:
            part = made[each.key].chunk(parts)[index]
            if self._rank == each.target:
                found[place] = part if parts == 1 else part.clone()
            else:
                exchange.send(part, each.target)
        else:
            batch = batches[each.unit.index]
            found[place] = torch.empty(
                output_shape(batch, each.key, parts, self._stage.width),
                dtype=torch.float32 if each.key == EMBEDDINGS else self._stage.dtype,
                device=batch.tokens.device,
            )
            exchange.receive(found[place], each.source)

    def _fetch(
        self, batches: Sequence[Microbatch], shares: list[list[Unit]]
    ) -> dict[Unit, Microbatch]:
        """The microbatches of this rank's copy, from the ranks of the student that have read them."""
        teacher = self._stage.layout
        exchange = Exchange(self._group)
        packed = [pack(batch) for batch in batches]
        arrived: dict[Unit, Tensor] = {}
        for target in range(teacher.ranks):
            for unit in shares[teacher.place(target).data]:
                reader = self._reader(target, unit)
                if reader == target == self._rank:
                    arrived[unit] = packed[unit.index]
                elif reader == self._rank:
                    exchange.send(packed[unit.index], target)
                elif target == self._rank:
                    arrived[unit] = torch.empty_like(packed[0])
                    exchange.receive(arrived[unit], reader)
        exchange.run()
        return {unit: unpack(each) for unit, each in arrived.items()}

    def _reader(self, target: int, unit: Unit) -> int:
        """Who hands a microbatch to `target`: itself, or one of those that have read it."""
        student = self._student
        if student.place(target).data == unit.data:
            return target
        tensor, pipeline = target % student.tensor, target // student.tensor % student.pipeline
        return student.rank(Place(tensor, unit.data, pipeline))


def output_shape(batch: Microbatch, key: int, parts: int, width: int) -> torch.Size:
    """The shape of one of `parts` parts of an output of `batch`; see `FrozenStage.forward`."""
    size, length = batch.tokens.shape
    if key == EMBEDDINGS:
        return torch.Size((batch.num_segments, width))
    return torch.Size((length // parts, size, width))


def pack(batch: Microbatch) -> Tensor:
    """A microbatch as one tensor, int64 [fields, B, S]; without the samples' hashes."""
    return torch.stack([getattr(batch, name).long() for name in TENSORS])


def unpack(packed: Tensor) -> Microbatch:
    """The microbatch of `pack`."""
    fields = dict(zip(TENSORS, packed.unbind(), strict=True))
    fields["loss_mask"] = fields["loss_mask"].bool()
    return Microbatch(**fields, sample_hashes=())
