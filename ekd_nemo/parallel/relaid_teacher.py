"""A frozen teacher on the student's own ranks, in a layout of its own."""

from collections.abc import Sequence

from torch import Tensor

from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.exchange import exchange_group
from ekd_nemo.parallel.frozen_stage import FrozenStage
from ekd_nemo.parallel.teacher_pass import Found, SharedPass
from ekd_nemo.teacher.layout import EMBEDDINGS, FINAL, Layout
from ekd_nemo.teacher.source import TeacherNeeds, TeacherOutputs


class RelaidTeacher:
    """Runs over a step's microbatches before the student's schedule, and re-shards the outputs.

    It is no part of the student's module tree: no gradients, no optimiser, no checkpoint.

    Memory beside the weights and the head: as `SharedPass` says.
    """

    def __init__(self, stage: FrozenStage, student: Layout, head: Tensor | None) -> None:
        """Take this rank's part of the teacher.

        Args:
            stage: filled and frozen.
            student: the student's layout, on the same ranks.
            head: [V_local, H_t], the rows of this rank's shard of the *student's* vocabulary; None
                off the student's last stage.

        Collectives: a group of all ranks is made.
        """
        self._stage, self._head = stage, head
        self._pass = SharedPass(stage, student, exchange_group())

    def outputs(self, batches: Sequence[Microbatch], needs: TeacherNeeds) -> TeacherOutputs:
        """What is asked for of `batches`, without gradients; as many microbatches on every rank."""
        with self._stage.resident():
            found = self._pass.run(batches, needs)
        return gathered(found, len(batches), needs, self._head)


def gathered(
    found: Found, num_microbatches: int, needs: TeacherNeeds, head: Tensor | None
) -> TeacherOutputs:
    """The outputs of a rank in the order of its microbatches."""
    by_key: dict[int, list[Tensor]] = {}
    for index in range(num_microbatches):
        for key in {key for place, key in found if place == index}:
            by_key.setdefault(key, []).append(found[index, key])
    return TeacherOutputs(
        hidden=by_key.get(FINAL, []),
        head=head if needs.distribution else None,
        layers={key: each for key, each in by_key.items() if key >= 0},
        embeddings=by_key.get(EMBEDDINGS, []),
    )
