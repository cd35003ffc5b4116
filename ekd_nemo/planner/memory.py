"""Bytes that one device holds, by part."""

from dataclasses import dataclass, fields
from typing import Final

from ekd_nemo.config.placement import stage_of_layer
from ekd_nemo.config.recipe import Lora, Precision
from ekd_nemo.planner.assumptions import BYTES
from ekd_nemo.planner.layout import Layout, lora_parameters, stage_parameters
from ekd_nemo.planner.moments import Kind, Losses, fullest_moment
from ekd_nemo.planner.timing import Work

GIB: Final = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        student_weights: parameters, and their FP8 copies where there are.
        teacher_weights: of a teacher on this device.
        gradients: the buffer that Megatron reduces.
        optimizer: master weights and Adam's moments.
        activations: what the student's backward pass needs, at the fullest moment of a step.
        loss: what the loss holds at that moment: a chunk of logits, the gradients of head and hidden states.
        teacher_forward: what the teacher's forward pass needs beyond activations and loss, which are not there then.
        buffers: teacher outputs that wait for the student, and the teacher's head where it is not its own part's.
        reserve: driver, communicators, workspaces, fragments.
    """

    student_weights: int = 0
    teacher_weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    loss: int = 0
    teacher_forward: int = 0
    buffers: int = 0
    reserve: int = 0

    @property
    def total(self) -> int:
        """All parts."""
        return sum(getattr(self, field.name) for field in fields(self))

    def scaled(self, factor: float) -> "Memory":
        """All parts by a factor."""
        return Memory(**{name: round(size * factor) for name, size in vars(self).items()})


@dataclass(frozen=True)
class Outputs:
    """What a step needs of the teacher.

    Attributes:
        final: whether the final hidden states are asked for.
        pairs: (teacher layer, student layer) whose states are compared, both from 0.
        sparse: bytes a token of top-k or sampled targets.
    """

    final: bool = False
    pairs: tuple[tuple[int, int], ...] = ()
    sparse: float = 0.0

    @property
    def states(self) -> int:
        """Hidden states a token, of the teacher's width."""
        return int(self.final) + len({teacher for teacher, _ in self.pairs})

    def bytes_a_token(self, width: int, precision: Precision) -> float:
        """Bytes of a token's outputs at the teacher's width."""
        return self.states * width * {"fp32": 4, "bf16": 2, "fp8": 1}[precision] + self.sparse

    def pairs_at(self, stage: int, layout: Layout, num_layers: int) -> int:
        """Pairs whose student layer is on a stage of the student."""
        return sum(
            stage_of_layer(own, num_layers, layout.pipeline, layout.virtual) == stage
            for _, own in self.pairs
        )

    def wanted_at(self, stage: int, layout: Layout, num_layers: int) -> int:
        """Hidden states a token that a stage of the student takes."""
        last = stage == layout.pipeline - 1
        here = {
            teacher
            for teacher, own in self.pairs
            if stage_of_layer(own, num_layers, layout.pipeline, layout.virtual) == stage
        }
        return int(self.final and last) + len(here)

    def made_at(self, stage: int, layout: Layout, num_layers: int) -> int:
        """Hidden states a token that a stage of the teacher gives."""
        last = stage == layout.pipeline - 1
        layers = {teacher for teacher, _ in self.pairs}
        here = sum(
            stage_of_layer(layer, num_layers, layout.pipeline, layout.virtual) == stage
            for layer in layers
        )
        return int(self.final and last) + here


def student_memory(
    work: Work, lora: Lora | None, distributed: bool, kind: Kind, stage: int, losses: Losses
) -> Memory:
    """Bytes of the student on a rank of a pipeline stage.

    Args:
        work: the student.
        lora: adapters, if they are what is trained.
        distributed: whether the optimiser is sharded over the data-parallel ranks.
        kind: decides the layers: Transformer Engine's on GPUs, Megatron's local ones on CPUs.
        stage: from 0.
        losses: what the losses of the stage need.
    """
    arch, layout = work.arch, work.layout
    held = stage_parameters(arch, layout, stage)
    adapters = 0 if lora is None else lora_parameters(arch, layout, lora.rank, lora.target_modules)
    # Every tensor rank holds the feature loss's maps whole (parallel/taps.py).
    features = losses.features
    maps = features.pairs * arch.hidden_size * losses.teacher_width if features.projected else 0
    trained = maps + (held if lora is None else adapters)
    # fp32 parameters are their own master; else Megatron keeps one in fp32 beside Adam's two moments.
    state = 8 if work.precision == "fp32" else 12
    shards = layout.data * layout.context if distributed else 1
    moment = fullest_moment(work, kind, stage, losses)
    return Memory(
        student_weights=weight_bytes(held + adapters, work.precision, trained=True)
        + maps * BYTES[work.precision],
        gradients=4 * trained,
        optimizer=state * trained // shards + int(moment.optimizer),
        activations=int(moment.activations),
        loss=int(moment.loss),
    )


def weight_bytes(parameters: int, precision: Precision, *, trained: bool) -> int:
    """Bytes of stored parameters.

    Under FP8 Transformer Engine keeps them in bf16. Of trained ones it caches an FP8 copy and its
    transpose for the microbatches of a step; a frozen teacher casts its weights when they are used.
    """
    copies = 2 if precision == "fp8" and trained else 0
    return parameters * (BYTES[precision] + copies)


def teacher_memory(work: Work, kind: Kind, stage: int, *, head: bool) -> Memory:
    """Bytes of a frozen model on a rank of a stage: weights, and the live tensors of one microbatch.

    Args:
        work: the teacher.
        kind: decides the layers.
        stage: from 0.
        head: whether it has the output layer: only where it stands as the student does (models/frozen.py).
    """
    layout, arch = work.layout, work.arch
    held = stage_parameters(arch, layout, stage, head=head)
    query, key_value = arch.num_heads * arch.head_dim, arch.num_kv_groups * arch.head_dim
    # In the MLP gate and value in one, the activated gate, the value again and the product; in attention the joint
    # projection, turned query and key, key and value for all heads, and the output.
    width = max(5 * arch.ffn_size, 5 * query + 3 * key_value) / layout.tensor
    # The residual and the norm's output; gathered for the matrices where the sequence is shared out.
    live = 2 * arch.hidden_size / layout.sequence_shards + width
    live += arch.hidden_size if layout.sequence_parallel else 0
    live += work.sequence if kind == "cpu" else 0  # the mask as numbers
    return Memory(
        teacher_weights=weight_bytes(held, work.precision, trained=False),
        teacher_forward=int(live * work.tokens * BYTES[work.precision]),
    )
