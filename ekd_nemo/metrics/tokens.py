"""Trained tokens: once per data-parallel replica, and once per step however often a crash made it run again."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ekd_nemo.metrics.marks import StepTokens

Counts = tuple[int, int | None]


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """What a run has trained on.

    Attributes:
        steps: distinct steps that are in the weights.
        tokens: non-padding tokens of the global batches of those steps.
        tokens_valid: of those, the ones that carry loss; None when a step does not say.
        lost_steps: runs of a step that a crash undid; their energy counts, their tokens do not.
        flags: `tokens_disagree` when ranks of one replica gave different counts (the largest is taken).
    """

    steps: int
    tokens: int
    tokens_valid: int | None
    lost_steps: int
    flags: tuple[str, ...]


def newest_attempts(attempts: Mapping[int, Iterable[int]]) -> dict[int, int]:
    """The attempt whose run of each step is in the weights.

    A later attempt starts from a checkpoint, so it undoes every earlier run of its first step and of later ones,
    even those that it never reaches itself.

    Args:
        attempts: the attempts that ran each step.
    """
    first: dict[int, int] = {}
    for step, tried in attempts.items():
        for attempt in tried:
            first[attempt] = min(step, first.get(attempt, step))
    newest = {step: max(tried) for step, tried in sorted(attempts.items())}
    return {
        step: attempt
        for step, attempt in newest.items()
        if not any(later > attempt and begun <= step for later, begun in first.items())
    }


def trained_tokens(marks: Iterable[StepTokens]) -> TrainedTokens:
    """Count tokens over all ranks' step marks, of each step's run that is in the weights.

    An attempt that was killed before all replicas had marked a step gives way to one in which more of them had.
    """
    replicas: dict[int, dict[int, dict[int, Counts]]] = defaultdict(lambda: defaultdict(dict))
    disagree = False
    for mark in marks:
        counted = replicas[mark.step][mark.attempt]
        value = (mark.tokens, mark.tokens_valid)
        known = counted.setdefault(mark.replica, value)
        if known != value:
            disagree = True
            counted[mark.replica] = max(known, value, key=_order)
    kept = newest_attempts(replicas)
    counts: list[Counts] = []
    for step in kept:
        runs = replicas[step]
        counts.extend(runs[max(runs, key=lambda attempt: (len(runs[attempt]), attempt))].values())
    valid = [number for _, number in counts if number is not None]
    return TrainedTokens(
        steps=len(kept),
        tokens=sum(tokens for tokens, _ in counts),
        tokens_valid=sum(valid) if counts and len(valid) == len(counts) else None,
        lost_steps=sum(len(runs) for runs in replicas.values()) - len(kept),
        flags=("tokens_disagree",) if disagree else (),
    )


def _order(counts: Counts) -> tuple[int, int]:
    return counts[0], -1 if counts[1] is None else counts[1]
