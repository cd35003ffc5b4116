"""Where ranks stand in a layout, and which teacher rank gives what to which student rank.

Plain arithmetic, the same on every rank, so that nobody has to be asked: all ranks work out the
whole exchange and each does its part of it. A *unit* is one microbatch of one data-parallel rank of
the student. A *key* names an output of the teacher.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

from ekd_nemo.teacher.source import TeacherNeeds

# Keys of outputs; a layer's key is its number, counted from 0.
FINAL = -1  # final hidden states
EMBEDDINGS = -2  # one pooled embedding a segment


class Cut(Protocol):
    """The part of a recipe's `Parallel` that decides where ranks stand."""

    tensor: int
    pipeline: int
    sequence_parallel: bool


@dataclass(frozen=True)
class Place:
    """A rank's coordinates."""

    tensor: int
    data: int
    pipeline: int


@dataclass(frozen=True)
class Layout:
    """Tensor ranks innermost, then data, then pipeline, as Megatron's default order has them.

    Attributes:
        tensor: tensor-parallel size.
        pipeline: stages.
        data: copies of the model.
        sequence_parallel: whether tensor ranks share out the sequence between layers.
    """

    tensor: int
    pipeline: int
    data: int
    sequence_parallel: bool = False

    @classmethod
    def of(cls, cut: Cut, world: int) -> "Layout":
        """The layout of `world` ranks; `world` holds whole copies."""
        copies, rest = divmod(world, cut.tensor * cut.pipeline)
        assert copies > 0
        assert rest == 0
        return cls(cut.tensor, cut.pipeline, copies, cut.sequence_parallel)

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.tensor * self.data * self.pipeline

    def place(self, rank: int) -> Place:
        """A rank's coordinates."""
        return Place(
            rank % self.tensor,
            rank // self.tensor % self.data,
            rank // (self.tensor * self.data),
        )

    def rank(self, place: Place) -> int:
        """The rank at these coordinates."""
        return place.tensor + self.tensor * (place.data + self.data * place.pipeline)

    def tensor_groups(self) -> list[list[int]]:
        """Ranks that share one stage of one copy."""
        return [
            [self.rank(Place(t, d, p)) for t in range(self.tensor)]
            for p in range(self.pipeline)
            for d in range(self.data)
        ]

    def pipeline_groups(self) -> list[list[int]]:
        """Ranks that hold the same tensor shard of one copy, by stage."""
        return [
            [self.rank(Place(t, d, p)) for p in range(self.pipeline)]
            for d in range(self.data)
            for t in range(self.tensor)
        ]


@dataclass(frozen=True, order=True)
class Unit:
    """One microbatch of one data-parallel rank of the student."""

    data: int
    index: int


def deal(num_microbatches: int, student_data: int, copies: int) -> list[list[Unit]]:
    """Share out a global batch among the copies of the teacher, as evenly as units go.

    Args:
        num_microbatches: of each data-parallel rank of the student.
        student_data: those ranks.
        copies: of the teacher.

    Returns:
        For each copy its units in the order in which it works them; neighbours stay together.
    """
    units = [Unit(d, m) for d in range(student_data) for m in range(num_microbatches)]
    shares: list[list[Unit]] = [[] for _ in range(copies)]
    for place, unit in enumerate(units):
        shares[place * copies // len(units)].append(unit)
    return shares


@dataclass(frozen=True)
class Transfer:
    """One output that goes from a rank of the teacher to a rank of the student.

    Attributes:
        source: rank in the teacher's layout.
        target: rank in the student's layout.
        unit: whose output it is.
        key: which output.
        part: (i, n): the i-th of n equal parts of the sequence.
    """

    source: int
    target: int
    unit: Unit
    key: int
    part: tuple[int, int]


def transfers(
    teacher: Layout,
    student: Layout,
    wants: Sequence[Collection[int]],
    unit: Unit,
    at: tuple[int, int],
    keys: Collection[int],
    *,
    same_ranks: bool,
) -> list[Transfer]:
    """Who gets what of a unit from one stage of one copy of the teacher.

    All tensor ranks of that stage hold the whole output. A student rank that is one of them takes
    its own; the others spread over them.

    Args:
        teacher: the teacher's layout.
        student: the student's.
        wants: the keys that each stage of the student needs.
        unit: the microbatch.
        at: copy and stage of the teacher.
        keys: what that stage gives.
        same_ranks: whether rank i of the teacher is rank i of the student.

    Returns:
        In one order for all ranks: by target, then key.
    """
    copy, stage = at
    sources = [teacher.rank(Place(t, copy, stage)) for t in range(teacher.tensor)]
    found: list[Transfer] = []
    for pipeline, tensor in product(range(student.pipeline), range(student.tensor)):
        target = student.rank(Place(tensor, unit.data, pipeline))
        own = same_ranks and target in sources
        source = target if own else sources[tensor % teacher.tensor]
        cut = (tensor, student.tensor) if student.sequence_parallel else (0, 1)
        found += [
            Transfer(source, target, unit, key, (0, 1) if key == EMBEDDINGS else cut)
            for key in sorted(keys)
            if key in wants[pipeline]
        ]
    return found


def keys_by_stage(needs: TeacherNeeds, pipeline: int) -> list[frozenset[int]]:
    """What each of the student's stages needs."""
    stages = [{key for key, at in needs.layers.items() if p in at} for p in range(pipeline)]
    if needs.distribution or needs.final:
        stages[-1].add(FINAL)
    if needs.pooling is not None:
        stages[-1].add(EMBEDDINGS)
    return [frozenset(stage) for stage in stages]
