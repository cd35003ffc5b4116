"""Response distillation and cross-entropy from hidden states and head shards, fused and sharded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from ekd_nemo.errors import ConfigError, DataError
from ekd_nemo.losses.chunk import (
    DenseTeacher,
    Kernels,
    Problem,
    Teacher,
    Terms,
    accumulation_type,
)
from ekd_nemo.losses.collectives import gather_rows, group_size, scatter_row_sums, sum_over
from ekd_nemo.losses.divergence import DivergenceKind, divergence
from ekd_nemo.losses.fused_linear import solve
from ekd_nemo.losses.parts import LossParts
from ekd_nemo.losses.sparse import SampledTargets, SparseTargets, check_targets
from ekd_nemo.losses.vocab import check_same_rows, vocab_rows

DEFAULT_MEMORY_BYTES = 96 << 20
# Rows of a half-precision gradient that are scaled at once, through a float32 copy.
SCALE_ROWS = 1024
KINDS = ("forward_kl", "reverse_kl", "jsd", "total_variation")


@dataclass(frozen=True)
class ResponseSettings:
    """Which divergence, and at which temperature.

    Attributes:
        kind: forward_kl: KL(teacher || student); reverse_kl: KL(student || teacher); jsd;
            total_variation.
        temperature: T > 0; divides both models' logits. The term is multiplied by T^2.
        beta: the teacher's share of the mixture of jsd, 0 < beta < 1; read by jsd only.
    """

    kind: DivergenceKind = "forward_kl"
    temperature: float = 1.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.kind not in KINDS:
            raise ConfigError(f"response kind is {self.kind!r}; accepted: {', '.join(KINDS)}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"response temperature is {self.temperature}; it must be > 0")
        if not 0 < self.beta < 1:
            raise ConfigError(f"response beta is {self.beta}; it must be between 0 and 1")

    @property
    def name(self) -> str:
        """The term's name in logs, such as "response_forward_kl"."""
        return f"response_{self.kind}"


def fused_linear_response(
    student_hidden: Tensor,
    student_head: Tensor,
    labels: Tensor,
    valid: Tensor,
    *,
    vocab_size: int,
    teacher_hidden: Tensor | None = None,
    teacher_head: Tensor | None = None,
    teacher_targets: SparseTargets | None = None,
    settings: ResponseSettings = ResponseSettings(),
    weight_ce: float = 1.0,
    weight_response: float = 0.0,
    scale: float | Tensor = 1.0,
    tp_group: ProcessGroup | None = None,
    vocab_offset: int | None = None,
    teacher_vocab_offset: int | None = None,
    sequence_parallel: bool = False,
    teacher_sequence_parallel: bool = False,
    accumulate_into_main_grad: bool = False,
    chunk_tokens: int | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    kernels: Kernels = "torch",
) -> LossParts:
    """Sum over valid tokens of weight_ce * CE + weight_response * T^2 * D(teacher, student).

    Logits exist one chunk of valid tokens at a time, in the forward pass only; the gradients of
    `student_hidden` and `student_head` are made there as well, unless gradients are switched off
    (validation, recomputation), when nothing is kept. The backward pass multiplies them by the
    incoming gradient and frees them, so it can run once. With a teacher the response term is
    always measured, also at weight 0; without one this is plain cross-entropy.

    Args:
        student_hidden: [T, H_s], any float; float64 is computed in float64, everything else in
            float32 after the product with the head. [T / ranks, H_s] if `sequence_parallel`.
        student_head: [V_local, H_s], this rank's rows of the head (or of the tied embedding).
        labels: [T] int64 global ids; read where `valid` only.
        valid: [T] bool; False tokens cost nothing and contribute exactly 0. Same on all ranks of
            `tp_group`, as labels are.
        vocab_size: true vocabulary; rows for ids beyond it are padding and get no probability.
        teacher_hidden: [T, H_t], no gradient; [T / ranks, H_t] if `teacher_sequence_parallel`.
        teacher_head: [V_local_t, H_t]; the same ids as the student's on each rank.
        teacher_targets: in place of the teacher's hidden states and head: top-k or sampled ids
            of all T tokens, also where the hidden states are cut by sequence parallelism.
        settings: divergence and temperature.
        weight_ce: of the cross-entropy.
        weight_response: of the response term.
        scale: multiplies the total (not the sums); a tensor may come from another computation.
        tp_group: ranks that share the vocabulary; None means that V_local holds all of it.
        vocab_offset: id of this rank's first student row, for uneven shards; None: equal shards.
        teacher_vocab_offset: the same for the teacher.
        sequence_parallel: gather hidden states over `tp_group`, reduce-scatter their gradient.
            Otherwise the gradient is summed over `tp_group` here, as ColumnParallelLinear does.
        teacher_sequence_parallel: gather the teacher's hidden states.
        accumulate_into_main_grad: add the head's gradient to `student_head.main_grad` and set
            `grad_added_to_main_grad`, as Megatron's gradient accumulation fusion does.
        chunk_tokens: tokens a chunk; None: as many as `memory_bytes` allows.
        memory_bytes: bound on the logits of one chunk, both models together.
        kernels: who does the element-wise part, with the same result to rounding: torch's
            operations, or Triton's kernels (CUDA; float64 and sparse targets stay with torch).

    Returns:
        The weighted and scaled total and the sums in nats: "ce", and with a teacher `settings.name`
        (with its T^2), "_topk" or "_sampled" appended where it is that. Not divided by the count.

    Collectives: per chunk one maximum and one sum of at most four floats a token (one sum of two
        more unless forward KL); then one sum of the hidden gradient.

    Raises:
        VocabularyMismatchError: shards do not cover the vocabulary or differ between the models.
        DataError: shapes that do not fit, or a label outside the vocabulary at a valid token.
        ConfigError: settings that do not go together, or kernels that cannot run here.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2; the gradient in the forward pass after
        Liger Kernel, arXiv:2410.10989, section 3.2.

    Not covered: teachers with another tokenizer; a bias in the head; a second backward.
    """
    student_rows = vocab_rows("student", student_head.shape[0], vocab_size, vocab_offset, tp_group)
    hidden = student_hidden.detach()
    if sequence_parallel:
        hidden = gather_rows(hidden, tp_group)
    _check_tokens(hidden, labels, valid, vocab_size)
    teacher: Teacher | None = teacher_targets
    if teacher_targets is not None:
        _check_sparse(teacher_targets, teacher_hidden, teacher_head, settings)
        check_targets(teacher_targets, valid, vocab_size)
    elif teacher_hidden is not None and teacher_head is not None:
        rows = vocab_rows(
            "teacher", teacher_head.shape[0], vocab_size, teacher_vocab_offset, tp_group
        )
        check_same_rows(student_rows, rows)
        teacher = _dense_teacher(
            teacher_hidden, teacher_head[: rows.num], tp_group, teacher_sequence_parallel
        )
        _check_lengths(hidden, teacher_hidden=teacher.hidden)
    elif teacher_hidden is not None or teacher_head is not None:
        raise DataError("teacher_hidden and teacher_head: give both or neither")
    tokens = valid.nonzero().squeeze(1)
    weights = (weight_ce, weight_response)
    problem = Problem(
        hidden=hidden,
        head=student_head.detach()[: student_rows.num],
        labels=labels,
        tokens=tokens,
        teacher=teacher,
        terms=Terms(*weights, divergence(settings.kind, settings.beta), settings.temperature),
        rows=student_rows,
        group=tp_group,
        chunk_tokens=chunk_tokens
        or _chunk_tokens(len(tokens), memory_bytes, vocab_size, student_head, teacher, tp_group),
        kernels=kernels,
    )
    if accumulate_into_main_grad and _wants_grad(student_head):
        _check_main_grad(student_head)
    plan = _Plan(
        problem,
        student_head,
        _wants_grad(student_hidden),
        _wants_grad(student_head),
        sequence_parallel,
        accumulate_into_main_grad,
    )
    apply = cast(Callable[..., tuple[Tensor, Tensor]], _FusedLinearResponse.apply)
    total, sums = apply(student_hidden, student_head, plan)
    names = ("ce",) if teacher is None else ("ce", settings.name + teacher.suffix)
    return LossParts(
        total=total * scale,
        sums=dict(zip(names, sums.unbind(), strict=True)),
        count=valid.sum(),
    )


@dataclass(frozen=True)
class _Plan:
    """What the autograd function needs beside the two tensors that have a gradient."""

    problem: Problem
    head: Tensor
    wants_hidden: bool
    wants_head: bool
    sequence_parallel: bool
    into_main_grad: bool


class _FusedLinearResponse(torch.autograd.Function):
    """Makes loss and gradients together; backward only scales what forward has kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, plan: _Plan) -> tuple[Tensor, Tensor]:
        """Return the total in the accumulation type and the sums [terms] in float64."""
        problem = plan.problem
        acc = accumulation_type(hidden, head)
        grad_hidden = torch.zeros_like(problem.hidden) if plan.wants_hidden else None
        grad_head = torch.zeros_like(head, dtype=acc) if plan.wants_head else None
        with torch.autocast(hidden.device.type, enabled=False):
            outcome = solve(problem, grad_hidden, grad_head)
        if grad_hidden is not None and plan.sequence_parallel:
            grad_hidden = scatter_row_sums(grad_hidden, problem.group)
        elif grad_hidden is not None:
            sum_over(grad_hidden, problem.group)
        ctx.head, ctx.into_main_grad = plan.head, plan.into_main_grad
        ctx.grads = [grad_hidden, grad_head]
        total = problem.terms.weight_ce * outcome.ce
        if outcome.response is None:
            sums = outcome.ce[None]
        else:
            total = total + problem.terms.weight_response * outcome.response
            sums = torch.stack([outcome.ce, outcome.response])
        ctx.mark_non_differentiable(sums)
        return total.to(acc), sums

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_total: Tensor, _: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        """Scale the gradients made in forward, in place, and let go of them."""
        if ctx.grads is None:
            raise RuntimeError(
                "fused_linear_response: its gradients are used up; backward ran twice"
            )
        grad_hidden, grad_head = ctx.grads
        ctx.grads = None
        if grad_hidden is not None:
            _scale(grad_hidden, grad_total)
        if grad_head is not None and ctx.into_main_grad:
            grad_head = _add_to_main_grad(ctx.head, grad_head, grad_total)
        elif grad_head is not None:
            grad_head = grad_head.mul_(grad_total).to(ctx.head.dtype)
        return grad_hidden, grad_head, None


def _scale(grad: Tensor, factor: Tensor) -> None:
    """Multiply in place by a scalar that must not be rounded to the gradient's own type first."""
    if grad.dtype == factor.dtype:
        grad.mul_(factor)
        return
    for start in range(0, len(grad), SCALE_ROWS):
        part = grad[start : start + SCALE_ROWS]
        part.copy_(part.to(factor.dtype).mul_(factor))


def _add_to_main_grad(head: Any, grad: Tensor, factor: Tensor) -> Tensor | None:
    """Add to Megatron's accumulation buffer and say so.

    What is returned is a stand-in that Megatron's hook ignores, or adds where a tied embedding on
    the same stage shares `.grad` with the head (`zero_out_wgrad`): hence zeros.
    Source: megatron-core 0.15.3, tensor_parallel/layers.py, lines 554-604.
    """
    head.main_grad.addcmul_(grad, factor)
    if not hasattr(head, "grad_added_to_main_grad"):
        return None
    head.grad_added_to_main_grad = True
    return torch.zeros_like(head)


def _wants_grad(tensor: Tensor) -> bool:
    return torch.is_grad_enabled() and tensor.requires_grad


def _dense_teacher(
    hidden: Tensor, head: Tensor, group: ProcessGroup | None, sequence_parallel: bool
) -> DenseTeacher:
    hidden = hidden.detach()
    return DenseTeacher(gather_rows(hidden, group) if sequence_parallel else hidden, head.detach())


def _chunk_tokens(
    num_tokens: int,
    memory_bytes: int,
    vocab_size: int,
    head: Tensor,
    teacher: Teacher | None,
    group: ProcessGroup | None,
) -> int:
    """Near-equal chunks within the bound; the same on all ranks, also with uneven shards."""
    columns = math.ceil(vocab_size / group_size(group))
    itemsize = head.dtype.itemsize
    if isinstance(teacher, DenseTeacher):
        itemsize += teacher.head.dtype.itemsize
    most = max(1, memory_bytes // (columns * itemsize))
    return max(1, math.ceil(num_tokens / max(1, math.ceil(num_tokens / most))))


def _check_lengths(hidden: Tensor, **others: Tensor) -> None:
    num_tokens = len(hidden)
    wrong = [f"{name} {len(other)}" for name, other in others.items() if len(other) != num_tokens]
    if wrong:
        raise DataError(f"student_hidden holds {num_tokens} tokens but {', '.join(wrong)}")


def _check_tokens(hidden: Tensor, labels: Tensor, valid: Tensor, vocab_size: int) -> None:
    _check_lengths(hidden, labels=labels, valid=valid)
    if valid.dtype != torch.bool:
        raise DataError(f"valid is {valid.dtype}; it must be bool")
    wrong = labels[valid & ((labels < 0) | (labels >= vocab_size))]
    if len(wrong):
        raise DataError(f"label {int(wrong[0])} at a valid token; accepted: 0 to {vocab_size - 1}")


def _check_sparse(
    targets: SparseTargets,
    teacher_hidden: Tensor | None,
    teacher_head: Tensor | None,
    settings: ResponseSettings,
) -> None:
    if teacher_hidden is not None or teacher_head is not None:
        raise DataError("teacher_targets stand in place of teacher_hidden and teacher_head")
    if isinstance(targets, SampledTargets) and settings.kind != "forward_kl":
        raise ConfigError(f"sampled targets: kind is {settings.kind}; accepted: forward_kl")


def _check_main_grad(head: Tensor) -> None:
    if not hasattr(head, "main_grad"):
        raise ConfigError(
            "accumulate_into_main_grad: the head has no main_grad; wrap the model in Megatron's "
            "DistributedDataParallel or switch gradient_accumulation_fusion off"
        )
