"""The student's end of a split run: takes what the teacher's ranks have sent."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ekd_nemo.backend.device import compute_device
from ekd_nemo.config.recipe import Precision
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.frozen_stage import keys_of_stage
from ekd_nemo.parallel.relaid_teacher import gathered
from ekd_nemo.parallel.teacher_pass import Found, output_shape
from ekd_nemo.teacher.joint import Joint
from ekd_nemo.teacher.layout import EMBEDDINGS, Layout, Unit, deal, keys_by_stage, transfers
from ekd_nemo.teacher.source import TeacherNeeds, TeacherOutputs
from ekd_nemo.teacher.transport import decode, encoded_bytes


@dataclass(frozen=True)
class Remote:
    """What the student has to know of a teacher that lives elsewhere.

    Attributes:
        layout: of the teacher's ranks.
        num_layers: of the teacher.
        width: H_t.
        transport: how hidden states travel.
    """

    layout: Layout
    num_layers: int
    width: int
    transport: Precision


class SplitTeacher:
    """A `TeacherSource` whose teacher works on ranks of its own, ahead of the student.

    The teacher reads the same batches by itself: nothing is asked of it, its passes come in the
    order in which the student needs them.

    Memory: this rank's outputs of a global batch, and their messages until they are decoded.
    """

    def __init__(
        self,
        joint: Joint,
        remote: Remote,
        student: Layout,
        head: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """Hold the connection.

        Args:
            joint: to the teacher's ranks.
            remote: the teacher.
            student: the student's layout.
            head: [V_local, H_t], the teacher's rows of this rank's shard; None off the last stage.
            dtype: of the outputs.
        """
        self._joint, self._remote, self._student = joint, remote, student
        self._head, self._dtype = head, dtype
        self._rank = joint.seat.rank
        self._data = student.place(self._rank).data

    def outputs(self, batches: Sequence[Microbatch], needs: TeacherNeeds) -> TeacherOutputs:
        """The next pass of the teacher, which is that of `batches`.

        Raises: RunError if the connection breaks.
        """
        found: Found = {}
        arriving = list[tuple[tuple[int, int], torch.Size, Precision, Tensor, object]]()
        for source, unit, key, parts in self._messages(len(batches), needs):
            shape = output_shape(batches[unit.index], key, parts, self._remote.width)
            transport = transport_of(key, self._remote.transport)
            message = torch.empty(
                encoded_bytes(shape, transport), dtype=torch.uint8, device=compute_device()
            )
            work = self._joint.receive(message, self._student.ranks + source)
            arriving.append(((unit.index, key), shape, transport, message, work))
        for place, shape, transport, message, work in arriving:
            try:
                work.wait()  # pyright: ignore
            except RuntimeError as error:
                raise self._joint.broken(error) from error
            dtype = torch.float32 if place[1] == EMBEDDINGS else self._dtype
            found[place] = decode(message, shape, transport, dtype)
        return gathered(found, len(batches), needs, self._head)

    def _messages(
        self, num_microbatches: int, needs: TeacherNeeds
    ) -> list[tuple[int, Unit, int, int]]:
        """Source, unit, key and number of parts of what comes to this rank, in sending order."""
        teacher = self._remote.layout
        wants = keys_by_stage(needs, self._student.pipeline)
        wanted = frozenset[int]().union(*wants)
        found: list[tuple[int, Unit, int, int]] = []
        for copy, share in enumerate(deal(num_microbatches, self._student.data, teacher.data)):
            for unit in share:
                if unit.data != self._data:
                    continue
                for stage in range(teacher.pipeline):
                    keys = keys_of_stage(wanted, stage, self._remote.num_layers, teacher.pipeline)
                    found += [
                        (each.source, unit, each.key, each.part[1])
                        for each in transfers(
                            teacher,
                            self._student,
                            wants,
                            unit,
                            (copy, stage),
                            keys,
                            same_ranks=False,
                        )
                        if each.target == self._rank
                    ]
        return found


def transport_of(key: int, transport: Precision) -> Precision:
    """Embeddings are few and go whole."""
    return "fp32" if key == EMBEDDINGS else transport
