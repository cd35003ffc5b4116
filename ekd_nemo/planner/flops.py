"""Floating-point operations of a decoder, counted as the model needs them.

A multiplication and an addition are two. Counted are the matrix products; norms, rotary embedding, activation and
softmax are left out, as is everything that is done twice (recomputation). Attention is counted as causal inside each
segment, so a token attends to itself and to what lies before it in its own segment. NVIDIA's published figures count
the full square of the sequence instead: at 8192 tokens that makes Llama 3 8B 13 % larger.

Source: Narayanan et al. 2021, arXiv:2104.04473, appendix, with causal attention.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ekd_nemo.config.architecture import Architecture

Trained = Literal["full", "lora", "none"]
# A backward pass makes the gradient of the inputs and that of the weights, each as costly as the forward pass.
# With frozen weights (LoRA) only the first; the adapters themselves are below 1 % and are left out.
BACKWARD_PASSES: dict[Trained, float] = {"full": 2.0, "lora": 1.0, "none": 0.0}


@dataclass(frozen=True)
class ForwardFlops:
    """One forward pass, FLOP a token.

    Attributes:
        layers: the projections of all layers.
        attention: scores and weighted values of all layers.
        head: the output layer, by the true vocabulary.
    """

    layers: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of it, FLOP a token."""
        return self.layers + self.attention + self.head


def mean_context(segment_lengths: Iterable[int]) -> float:
    """Positions that a token attends to, itself included, averaged over the tokens of packed segments.

    Args:
        segment_lengths: tokens of each segment; one segment is a sequence without packing.
    Returns: sum n (n + 1) / 2 over sum n; 0 without tokens.
    """
    lengths = list(segment_lengths)
    tokens = sum(lengths)
    return sum(n * (n + 1) / 2 for n in lengths) / tokens if tokens else 0.0


def forward_flops(arch: Architecture, context: float) -> ForwardFlops:
    """The forward pass of a decoder, FLOP a token.

    Args:
        arch: the decoder.
        context: positions that a token attends to on average, see `mean_context`.
    """
    query, key_value = arch.num_heads * arch.head_dim, arch.num_kv_groups * arch.head_dim
    projections = (
        arch.hidden_size * (2 * query + 2 * key_value) + 3 * arch.hidden_size * arch.ffn_size
    )
    return ForwardFlops(
        layers=2.0 * arch.num_layers * projections,
        attention=4.0 * arch.num_layers * query * context,
        head=2.0 * arch.hidden_size * arch.vocab_size,
    )


def model_flops(
    arch: Architecture, context: float, trained: Trained = "full", learned_share: float = 1.0
) -> float:
    """Forward and backward pass, FLOP a token.

    Args:
        arch: the decoder.
        context: positions that a token attends to on average.
        trained: `full`, `lora` (frozen weights with adapters) or `none` (forward only, as a teacher).
        learned_share: share of the tokens that carry loss; the head is run for those only.
    """
    forward = forward_flops(arch, context)
    body = (forward.layers + forward.attention) * (1.0 + BACKWARD_PASSES[trained])
    if trained == "lora":  # attention has no weights: both its gradients are needed
        body += forward.attention
    return body + forward.head * learned_share * (1.0 + BACKWARD_PASSES[trained])


def step_flops(
    tokens: int,
    context: float,
    student: Architecture,
    teacher: Architecture | None = None,
    *,
    trained: Trained = "full",
    learned_share: float = 1.0,
    student_forwards: int = 1,
    teacher_head: bool = True,
) -> float:
    """A whole training step, FLOP over all ranks: what an MFU divides by time and peak.

    Args:
        tokens: non-padding tokens of the global batch.
        context: positions that a token attends to on average, over the global batch.
        student: the trained decoder.
        teacher: the frozen one if it runs in this step; None for plain fine-tuning and for cached outputs.
        trained: what of the student is trained.
        learned_share: share of the tokens that carry loss.
        student_forwards: 2 where the exact relation loss runs the student's forward pass once more.
        teacher_head: whether the teacher's head is run (response distillation).
    """
    total = model_flops(student, context, trained, learned_share)
    if student_forwards > 1:
        once = forward_flops(student, context)
        total += (student_forwards - 1) * (once.layers + once.attention)
    if teacher is not None:
        taught = forward_flops(teacher, context)
        total += taught.layers + taught.attention
        total += taught.head * learned_share if teacher_head else 0.0
    return total * tokens
