"""Naive float64 losses, written for reading: whole logits, autograd for the gradients."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ekd_nemo.losses.sparse import SampledTargets, SparseTargets, TopKTargets


@dataclass
class Pair:
    """Inputs of one response problem; the heads' rows beyond `vocab_size` are padding."""

    hidden: Tensor
    head: Tensor
    labels: Tensor
    valid: Tensor
    teacher_hidden: Tensor
    teacher_head: Tensor
    vocab_size: int

    def to(self, dtype: torch.dtype) -> "Pair":
        """Cast what is a float, detached."""
        fields = {
            name: value.detach().to(dtype)
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for name, value in vars(self).items()
        }
        return Pair(**fields)


def random_pair(
    num_tokens: int = 13,
    width: int = 6,
    teacher_width: int = 7,
    vocab_size: int = 23,
    padded: int = 24,
    seed: int = 0,
) -> Pair:
    """Draw a problem in float64: logits of size about 1, a third of the tokens masked."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    valid = torch.rand(num_tokens, generator=draw) > 1 / 3
    labels = torch.randint(vocab_size, (num_tokens,), generator=draw)
    return Pair(
        hidden=normal(num_tokens, width),
        head=0.5 * normal(padded, width),
        labels=torch.where(valid, labels, -100),
        valid=valid,
        teacher_hidden=normal(num_tokens, teacher_width),
        teacher_head=0.5 * normal(padded, teacher_width),
        vocab_size=vocab_size,
    )


def divergence_reference(log_p: Tensor, log_q: Tensor, kind: str, beta: float = 0.5) -> Tensor:
    """Divergence of each row, [T]."""
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward_kl":
        return (p * (log_p - log_q)).sum(-1)
    if kind == "reverse_kl":
        return (q * (log_q - log_p)).sum(-1)
    if kind == "total_variation":
        return 0.5 * (p - q).abs().sum(-1)
    log_m = (beta * p + (1 - beta) * q).log()
    return beta * (p * (log_p - log_m)).sum(-1) + (1 - beta) * (q * (log_q - log_m)).sum(-1)


@dataclass
class Expected:
    """Values and gradients of the reference."""

    total: Tensor
    ce: Tensor
    response: Tensor
    grad_hidden: Tensor
    grad_head: Tensor


def response_reference(
    pair: Pair,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    weight_ce: float = 1.0,
    weight_response: float = 1.0,
    scale: float = 1.0,
) -> Expected:
    """Whole-logits response loss with cross-entropy, in float64."""
    pair = pair.to(torch.float64)
    hidden = pair.hidden.requires_grad_()
    head = pair.head.requires_grad_()
    z_s = hidden[pair.valid] @ head[: pair.vocab_size].t()
    z_t = pair.teacher_hidden[pair.valid] @ pair.teacher_head[: pair.vocab_size].t()
    log_q = (z_s / temperature).log_softmax(-1)
    log_p = (z_t / temperature).log_softmax(-1)
    response = temperature**2 * divergence_reference(log_p, log_q, kind, beta).sum()
    ce = -z_s.log_softmax(-1).gather(1, pair.labels[pair.valid][:, None]).sum()
    total = scale * (weight_ce * ce + weight_response * response)
    total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return Expected(total.detach(), ce.detach(), response.detach(), hidden.grad, head.grad)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm-wise |a - b| / |b|; the plain norm of a where b is zero."""
    gap = (actual.double() - expected.double()).norm().item()
    size = expected.double().norm().item()
    return gap if size == 0 else gap / size if math.isfinite(gap) else math.inf


def top_k_of(pair: Pair, k: int, temperature: float = 1.0) -> TopKTargets:
    """The k most probable ids of each token, with their true log-probabilities."""
    log_p = _teacher_log_probs(pair, temperature)
    best = log_p.topk(k, -1)
    return TopKTargets(best.indices, best.values)


def samples_of(pair: Pair, num: int, seed: int, temperature: float = 1.0) -> SampledTargets:
    """Ids drawn from the teacher's distribution, each of weight 1 / num."""
    log_p = _teacher_log_probs(pair, temperature)
    draw = torch.Generator().manual_seed(seed)
    ids = torch.multinomial(log_p.exp(), num, replacement=True, generator=draw)
    return SampledTargets(
        ids, torch.full(ids.shape, 1 / num, dtype=log_p.dtype), log_p.gather(1, ids)
    )


def _teacher_log_probs(pair: Pair, temperature: float) -> Tensor:
    z_t = pair.teacher_hidden.double() @ pair.teacher_head[: pair.vocab_size].double().t()
    return (z_t / temperature).log_softmax(-1)


def sparse_reference(
    pair: Pair,
    targets: SparseTargets,
    kind: str = "forward_kl",
    temperature: float = 1.0,
    beta: float = 0.5,
    weight_ce: float = 1.0,
    weight_response: float = 1.0,
    scale: float = 1.0,
) -> Expected:
    """The same over k + 1 buckets, or over samples."""
    pair = pair.to(torch.float64)
    hidden, head = pair.hidden.requires_grad_(), pair.head.requires_grad_()
    z_s = hidden @ head[: pair.vocab_size].t()
    log_q_all = (z_s / temperature).log_softmax(-1)
    log_p, log_q = targets.log_probs.double(), log_q_all.gather(1, targets.ids)
    if isinstance(targets, SampledTargets):
        values = (targets.weights.double() * (log_p - log_q)).sum(-1)
    else:
        listed = torch.zeros_like(z_s, dtype=torch.bool).scatter_(1, targets.ids, True)
        tail_q = log_q_all.masked_fill(listed, -math.inf).logsumexp(-1, keepdim=True)
        tail_p = (1 - log_p.exp().sum(-1, keepdim=True)).log()
        values = divergence_reference(
            torch.cat([log_p, tail_p], 1), torch.cat([log_q, tail_q], 1), kind, beta
        )
    response = temperature**2 * values[pair.valid].sum()
    z_s = z_s[pair.valid]
    ce = -z_s.log_softmax(-1).gather(1, pair.labels[pair.valid][:, None]).sum()
    total = scale * (weight_ce * ce + weight_response * response)
    total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return Expected(total.detach(), ce.detach(), response.detach(), hidden.grad, head.grad)
