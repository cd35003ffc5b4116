"""One rank's part of a frozen teacher: forward passes, with the outputs that somebody asked for."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ekd_nemo.config.placement import stage_of_layer
from ekd_nemo.losses.collectives import gather_rows
from ekd_nemo.losses.pooling import PoolingKind
from ekd_nemo.parallel.batch import Microbatch
from ekd_nemo.parallel.hidden import HiddenStateGPT, hidden_states
from ekd_nemo.parallel.relations import segment_embeddings
from ekd_nemo.parallel.taps import recorded_layers
from ekd_nemo.teacher.layout import EMBEDDINGS, FINAL, Layout, Place


class FrozenStage:
    """A stage of the teacher: weights only, no gradients, no optimiser.

    Args:
        model: this rank's part, filled.
        layout: the teacher's.
        place: this rank's coordinates in it.
        offload: keep the weights in host memory outside `resident`; the CPU has no other memory,
            there it changes nothing.
    """

    def __init__(
        self, model: HiddenStateGPT, layout: Layout, place: Place, *, offload: bool = False
    ) -> None:
        """Freeze the model."""
        self._model = model.eval().requires_grad_(False)
        self.layout, self.place = layout, place
        self._host = _HostWeights(model) if offload and next(model.parameters()).is_cuda else None

    @property
    def first(self) -> bool:
        """Whether tokens enter here."""
        return self.place.pipeline == 0

    @property
    def last(self) -> bool:
        """Whether the final hidden states leave here."""
        return self.place.pipeline == self.layout.pipeline - 1

    @property
    def width(self) -> int:
        """H_t."""
        return int(self._model.config.hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and hidden states."""
        return next(self._model.parameters()).dtype

    def keys(self, wanted: Iterable[int], stage: int | None = None) -> list[int]:
        """Those of the wanted outputs that this stage, or another, gives."""
        here = self.place.pipeline if stage is None else stage
        return keys_of_stage(wanted, here, int(self._model.config.num_layers), self.layout.pipeline)

    @contextmanager
    def resident(self) -> Iterator[None]:
        """The weights are on the device inside."""
        if self._host is None:
            yield
            return
        self._host.load()
        try:
            yield
        finally:
            self._host.release()

    @torch.no_grad()
    def forward(
        self,
        batch: Microbatch,
        incoming: Tensor | None,
        keys: Sequence[int],
        pooling: PoolingKind | None,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run one microbatch.

        Args:
            batch: the microbatch.
            incoming: what the stage before has passed on; None on the first stage.
            keys: outputs to keep, of those that this stage gives.
            pooling: how embeddings are made, where they are among the keys.

        Returns:
            What goes to the next stage (on the last one: the final hidden states, as they came),
            and the outputs, each [S, B, H_t] (embeddings [segments, H_t], float32), whole on every
            tensor rank.
        """
        if not self.first:
            self._model.set_input_tensor(incoming)
        with recorded_layers([self._model], keys) as layers:
            out = hidden_states(self._model, batch)
        self._model.set_input_tensor(None)
        made = {key: self._whole(found[0]) for key, found in layers.items()}
        final = self._whole(out) if {FINAL, EMBEDDINGS} & set(keys) else out
        if FINAL in keys:
            made[FINAL] = final
        if EMBEDDINGS in keys:
            assert pooling is not None
            made[EMBEDDINGS] = segment_embeddings(final, batch, pooling, None)
        return out, made

    def _whole(self, hidden: Tensor) -> Tensor:
        """[S, B, H_t] from this tensor rank's part of the sequence."""
        if not self.layout.sequence_parallel:
            return hidden
        return gather_rows(hidden, self._model.pg_collection.tp)


def keys_of_stage(wanted: Iterable[int], stage: int, num_layers: int, pipeline: int) -> list[int]:
    """Those of the wanted outputs that a stage of the teacher gives; its stages are equally deep."""
    return sorted(
        key
        for key in wanted
        if stage == (pipeline - 1 if key < 0 else stage_of_layer(key, num_layers, pipeline))
    )


class _HostWeights:
    """The weights of a frozen model in pinned host memory; they never change, so none go back."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = list(model.parameters())
        self.device = self._parameters[0].device
        self._copies = [each.data.cpu().pin_memory() for each in self._parameters]
        self.release()

    def load(self) -> None:
        for parameter, copy in zip(self._parameters, self._copies, strict=True):
            parameter.data = copy.to(self.device, non_blocking=True)

    def release(self) -> None:
        for parameter, copy in zip(self._parameters, self._copies, strict=True):
            parameter.data = copy
