"""Hidden states of inner layers: recorded in a teacher, given a loss in a student."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.utils import make_viewless_tensor, unwrap_model
from torch import Tensor, nn

from ekd_nemo.backend.device import compute_device
from ekd_nemo.errors import LayoutError
from ekd_nemo.losses.attach import Scale, attach_loss
from ekd_nemo.losses.feature import FeatureKind, feature_loss


def layers_of(chunk: nn.Module) -> dict[int, nn.Module]:
    """The decoder layers of a model part by their number in the whole model, from 0."""
    decoder: Any = unwrap_model(chunk).decoder
    return {int(layer.layer_number) - 1: layer for layer in decoder.layers}


@contextmanager
def recorded_layers(
    chunks: Sequence[nn.Module], wanted: Iterable[int]
) -> Iterator[dict[int, list[Tensor]]]:
    """Collect the outputs of layers while the block runs a forward pass without gradients.

    Args:
        chunks: the model's parts on this rank.
        wanted: layer numbers from 0; those that are not on this rank are passed over.

    Returns:
        Layer -> [S, B, H] for each microbatch, in the order in which they run.
    """
    found: dict[int, list[Tensor]] = {}
    handles: list[Any] = []
    try:
        here = {number: layer for chunk in chunks for number, layer in layers_of(chunk).items()}
        for number in sorted(set(wanted) & set(here)):
            found[number] = []
            handles.append(here[number].register_forward_hook(_recorder(found[number])))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _recorder(into: list[Tensor]) -> Callable[[nn.Module, Any, tuple[Tensor, Any]], None]:
    def record(_module: nn.Module, _arguments: Any, output: tuple[Tensor, Any]) -> None:
        into.append(output[0].detach())

    return record


@dataclass(frozen=True)
class Pair:
    """A teacher layer and the student layer that imitates it, both from 0."""

    teacher: int
    student: int
    weight: float = 1.0

    @property
    def key(self) -> str:
        """Names the pair's projector and its term."""
        return f"{self.teacher}_{self.student}"


@dataclass(frozen=True)
class FeatureStep:
    """What the taps need for one training step.

    Attributes:
        teacher: teacher layer -> hidden states [S, B, H_t] ([S / ranks, B, H_t] with sequence
            parallelism) of each microbatch.
        tokens: for each microbatch the rows of the flattened hidden state that take part, int64.
        scale: gradient of a pair's sum, its own weight apart; asked in the backward pass.
    """

    teacher: Mapping[int, Sequence[Tensor]]
    tokens: Sequence[Tensor]
    scale: Scale


class FeatureTaps:
    """Gives the paired layers of one model part their loss, on whatever stage they live.

    A layer's call with gradients on belongs to the next microbatch: schedules run the microbatches
    of a model part in order, and where layers are recomputed, only the second run has gradients,
    in that order again. Calls without gradients (validation, the first of two passes) do nothing.
    """

    def __init__(self, chunk: nn.Module, pairs: Sequence[Pair], kind: FeatureKind) -> None:
        """Watch the paired layers of `chunk`; `projectors` are set by `add_projectors`."""
        self._kind: FeatureKind = kind
        self._step: FeatureStep | None = None
        self._calls: dict[str, int] = {}
        self._sums: dict[str, Tensor] = {}
        self._chunk = chunk
        here = layers_of(chunk)
        self.pairs = [pair for pair in pairs if pair.student in here]
        for pair in self.pairs:
            here[pair.student].register_forward_hook(self._hook(pair))

    def begin(self, step: FeatureStep) -> None:
        """Take part in the coming training step."""
        self._step = step
        self._calls = {pair.key: 0 for pair in self.pairs}
        self._sums = {pair.key: torch.zeros((), dtype=torch.float64) for pair in self.pairs}

    def end(self) -> dict[str, Tensor]:
        """Let go of the step; the pairs' sums over this rank's tokens, float64, by pair key.

        Raises: LayoutError if a layer ran for fewer microbatches than the step has.
        """
        assert self._step is not None
        wrong = [key for key, calls in self._calls.items() if calls != len(self._step.tokens)]
        if wrong:
            raise LayoutError(
                f"feature pair {wrong[0]}: its layer ran {self._calls[wrong[0]]} times with gradients "
                f"in a step of {len(self._step.tokens)} microbatches"
            )
        self._step = None
        return self._sums

    def _hook(self, pair: Pair) -> Callable[[nn.Module, Any, tuple[Tensor, Any]], Any]:
        def attach(_module: nn.Module, _arguments: Any, output: tuple[Tensor, Any]) -> Any:
            step = self._step
            if step is None or not torch.is_grad_enabled():
                return None
            hidden, context = output
            index, self._calls[pair.key] = self._calls[pair.key], self._calls[pair.key] + 1
            loss = self._loss(pair, hidden, step.teacher[pair.teacher][index], step.tokens[index])
            attached = attach_loss(hidden, loss * pair.weight, step.scale)
            # The last layer of a stage is sent on, and Megatron then frees it, which a view forbids.
            viewless = make_viewless_tensor(
                attached, requires_grad=attached.requires_grad, keep_graph=True
            )
            return viewless, context

        return attach

    def _loss(self, pair: Pair, hidden: Tensor, teacher: Tensor, tokens: Tensor) -> Tensor:
        ours = hidden.reshape(-1, hidden.shape[-1]).index_select(0, tokens)
        theirs = teacher.reshape(-1, teacher.shape[-1]).index_select(0, tokens)
        projectors: Any = getattr(unwrap_model(self._chunk), "projectors", {})
        if pair.key in projectors:
            ours = projectors[pair.key](ours)
        parts = feature_loss(ours, theirs, kind=self._kind)
        self._sums[pair.key] = self._sums[pair.key] + parts.sums[f"feature_{self._kind}"].cpu()
        return parts.total


def add_projectors(
    chunk: nn.Module,
    pairs: Iterable[Pair],
    teacher_width: int,
    seed: int,
    *,
    sequence_parallel: bool,
) -> None:
    """Give a model part one linear map from its width to the teacher's for each of its pairs.

    They are parameters of the model: optimised and checkpointed with it. The first weights depend on
    the seed and the pair alone: the identity where widths agree, else normal with 1 / sqrt(H_s).
    Every tensor-parallel rank holds them whole; with sequence parallelism each sees its own tokens,
    and Megatron sums the gradients of parameters so marked.
    """
    model: Any = unwrap_model(chunk)
    here, width = layers_of(chunk), int(model.config.hidden_size)
    made = nn.ModuleDict()
    for pair in pairs:
        if pair.student not in here:
            continue
        # On the device at once: NeMo moves no module there.
        kind = {"dtype": model.config.params_dtype, "device": compute_device()}
        linear: Any = nn.Linear(width, teacher_width, bias=False, **kind)
        linear.weight.data.copy_(_first_weights(pair, width, teacher_width, seed))
        linear.weight.sequence_parallel = sequence_parallel
        made[pair.key] = linear
    if made:
        model.projectors = made


def _first_weights(pair: Pair, width: int, teacher_width: int, seed: int) -> Tensor:
    if width == teacher_width:
        return torch.eye(width)
    digest = hashlib.blake2b(f"{seed}:projector:{pair.key}".encode(), digest_size=7).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.randn(teacher_width, width, generator=draw) / width**0.5
