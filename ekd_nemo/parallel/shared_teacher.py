"""A frozen teacher on the student's own ranks, in the student's layout."""

from collections.abc import Sequence

from megatron.core import parallel_state

from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.hidden import HiddenStateGPT
from ekd_nemo.parallel.schedule import forward_hidden
from ekd_nemo.teacher.source import TeacherOutputs


class SharedTeacher:
    """Runs the teacher forward over a step's microbatches, before the student's schedule.

    It is no part of the student's module tree: no gradients, no optimiser, no checkpoint.
    """

    def __init__(self, model: HiddenStateGPT) -> None:
        """Freeze a loaded model."""
        self._model = model.eval().requires_grad_(False)

    def outputs(self, batches: Sequence[Microbatch]) -> TeacherOutputs:
        """The final hidden states of each microbatch; held by the last stage only.

        Memory: microbatches * S * B * H_t elements of the teacher's type.
        """
        hidden = forward_hidden([self._model], batches)
        last = parallel_state.is_pipeline_last_stage()
        return TeacherOutputs(hidden=hidden, head=self._model.head if last else None)
