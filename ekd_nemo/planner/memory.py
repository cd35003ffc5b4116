"""Bytes that one device holds, by part, on the pipeline stage that holds most."""

from dataclasses import dataclass, fields
from typing import Final, Literal

from ekd_nemo.config.architecture import Architecture
from ekd_nemo.config.recipe import Lora, Precision
from ekd_nemo.planner.assumptions import BYTES
from ekd_nemo.planner.layout import Layout, lora_parameters, stage_parameters
from ekd_nemo.planner.timing import Work

GIB: Final = 2**30
Kind = Literal["gpu", "cpu"]
# The bound on one chunk's logits, losses.response.DEFAULT_MEMORY_BYTES.
LOSS_CHUNK_BYTES: Final = 96 << 20


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        student_weights: parameters, and their FP8 copies where there are.
        teacher_weights: of a teacher on this device.
        gradients: the buffer that Megatron reduces.
        optimizer: master weights and Adam's moments.
        activations: what the student's backward pass needs, at the peak of the schedule.
        loss: one chunk of logits, the stashed gradients of head and hidden states, gathered hidden states.
        teacher_forward: what the teacher's forward pass needs beyond activations and loss, which are not there then.
        buffers: teacher outputs that wait for the student.
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


@dataclass(frozen=True)
class Outputs:
    """What a step needs of the teacher.

    Attributes:
        states: hidden states a token, of the teacher's width: the final ones and those of chosen layers.
        sparse: bytes a token of top-k or sampled targets.
    """

    states: int = 0
    sparse: float = 0.0

    def bytes_a_token(self, width: int, precision: Precision) -> float:
        """Bytes of a token's outputs at the teacher's width."""
        return self.states * width * {"fp32": 4, "bf16": 2, "fp8": 1}[precision] + self.sparse


def student_memory(
    work: Work, lora: Lora | None, distributed: bool, kind: Kind, teacher_width: int = 0
) -> Memory:
    """Bytes of the student on the stage that holds most.

    Args:
        work: the student.
        lora: adapters, if they are what is trained.
        distributed: whether the optimiser is sharded over the data-parallel ranks.
        kind: decides the layers: Transformer Engine's on GPUs, Megatron's local ones on CPUs.
        teacher_width: of the teacher's hidden states that the loss takes; 0 without.
    """
    stages = [
        _student_stage(work, lora, distributed, kind, teacher_width, stage)
        for stage in range(work.layout.pipeline)
    ]
    return max(stages, key=lambda memory: memory.total)


def _student_stage(
    work: Work, lora: Lora | None, distributed: bool, kind: Kind, teacher_width: int, stage: int
) -> Memory:
    arch, layout = work.arch, work.layout
    held = stage_parameters(arch, layout, stage)
    adapters = 0 if lora is None else lora_parameters(arch, layout, lora.rank, lora.target_modules)
    trained = held if lora is None else adapters
    # fp32 parameters are their own master; else Megatron keeps one in fp32 beside Adam's two moments.
    state = 8 if work.precision == "fp32" else 12
    shards = layout.data * layout.context if distributed else 1
    last = stage == layout.pipeline - 1
    return Memory(
        student_weights=weight_bytes(held + adapters, work.precision, trained=True),
        gradients=4 * trained,
        optimizer=state * trained // shards,
        activations=activation_bytes(work, kind, stage),
        loss=_loss_bytes(work, teacher_width) if last and work.head_share else 0,
    )


def weight_bytes(parameters: int, precision: Precision, *, trained: bool) -> int:
    """Bytes of stored parameters.

    Under FP8 Transformer Engine keeps them in bf16. Of trained ones it caches an FP8 copy and its
    transpose for the microbatches of a step; a frozen teacher casts its weights when they are used.
    """
    copies = 2 if precision == "fp8" and trained else 0
    return parameters * (BYTES[precision] + copies)


def activation_bytes(work: Work, kind: Kind, stage: int = 0) -> int:
    """What the backward pass needs on one rank of a stage, at the peak of Megatron's schedule (1F1B).

    Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4, for grouped queries, a gated
    activation and attention that keeps no scores.
    """
    layout, size = work.layout, BYTES[work.precision]
    layers = work.arch.num_layers / layout.pipeline
    # 1F1B keeps as many microbatches as there are stages from here on; interleaving keeps some more.
    ahead = layout.pipeline - stage
    if layout.virtual > 1:
        ahead += (layout.pipeline - 1) / layout.virtual
    kept = min(ahead, work.microbatches)
    full = layer_elements(work.arch, layout, kind, work.recompute == "selective")
    tokens = work.tokens
    outer = work.arch.hidden_size / layout.sequence_shards  # a layer's input
    every_layer = kept * layers
    total = every_layer * outer + full if work.recompute == "full" else every_layer * full
    if stage == layout.pipeline - 1:  # the final norm: its input, what it keeps, and its output
        total += (3 if kind == "cpu" else 2) * outer
    return int(total * tokens * size)


def layer_elements(
    arch: Architecture, layout: Layout, kind: Kind, selective: bool = False
) -> float:
    """Elements a token that one layer keeps for its backward pass, on one rank."""
    query, key_value = arch.num_heads * arch.head_dim, arch.num_kv_groups * arch.head_dim
    if kind == "cpu":
        # Each norm: its input, the normed input, its output. Attention: query, key and value repeated to all heads, its
        # output before and after the transposition. Gate and value, the activated gate, their product.
        outside = 6 * arch.hidden_size
        repeated = (
            4 * query if arch.num_heads > arch.num_kv_groups else 2 * query + query + 2 * key_value
        )
        inside = repeated + query + 4 * arch.ffn_size
    else:
        # Each norm: its input and its output. The joint projection, query and key after rotation, attention's output.
        outside = 4 * arch.hidden_size
        attention = (query + 2 * key_value) + (query + key_value) + query
        inside = attention + 3 * arch.ffn_size
    if selective:
        inside -= query  # attention is made again from its inputs
    return outside / layout.sequence_shards + inside / layout.tensor


def _loss_bytes(work: Work, teacher_width: int) -> int:
    """Chunk of logits, gradient of the head in fp32, gradient of the hidden states, hidden states gathered."""
    arch, layout, size = work.arch, work.layout, BYTES[work.precision]
    head = arch.vocab_size * arch.hidden_size // layout.tensor * 4
    gathered = arch.hidden_size + teacher_width if layout.sequence_parallel else 0
    return LOSS_CHUNK_BYTES + head + work.tokens * size * (arch.hidden_size + gathered)


def teacher_memory(work: Work, kind: Kind) -> Memory:
    """Bytes of a frozen model on the stage that holds most: weights, and the live tensors of one microbatch."""
    layout, arch = work.layout, work.arch
    held = max(stage_parameters(arch, layout, stage) for stage in range(layout.pipeline))
    query, key_value = arch.num_heads * arch.head_dim, arch.num_kv_groups * arch.head_dim
    # The residual, a norm's output gathered for the product, and the widest pair of tensors that live together.
    width = max(query + 2 * key_value + 2 * query, 3 * arch.ffn_size) / layout.tensor
    live = 2 * arch.hidden_size / layout.sequence_shards + arch.hidden_size + width
    return Memory(
        teacher_weights=weight_bytes(held, work.precision, trained=False),
        teacher_forward=int(live * work.tokens * BYTES[work.precision]),
    )
