"""Trained tokens: once per data-parallel replica, and once per step however often a crash made it run again."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ekd_nemo.metrics.curve import Ints


class StepTokens(NamedTuple):
    """The steps of one rank in one attempt.

    Attributes:
        step: [S] numbers.
        replica: [S] index on the data axis.
        tokens, tokens_valid: [S] of that replica; -1 where the valid ones are not known.
    """

    attempt: int
    step: Ints
    replica: Ints
    tokens: Ints
    tokens_valid: Ints


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

    An attempt that was killed before all replicas had marked a step gives way to one that counted more tokens of it:
    a step's global batch is the same in every attempt, however many replicas share it.
    """
    parts = [part for part in marks if len(part.step)]
    if not parts:
        return TrainedTokens(0, 0, None, 0, ())
    table, disagree = _largest(parts)
    runs, first, size = np.unique(table[:, :2], axis=0, return_index=True, return_counts=True)
    tokens = np.add.reduceat(table[:, 3], first)
    attempts: dict[int, dict[int, int]] = defaultdict(dict)
    for (step, attempt), counted in zip(runs.tolist(), tokens.tolist(), strict=True):
        attempts[step][attempt] = counted
    kept = newest_attempts(attempts)
    fullest = {
        (step, max(attempts[step], key=lambda attempt: (attempts[step][attempt], attempt)))
        for step in kept
    }
    chosen = np.array([(step, attempt) in fullest for step, attempt in runs.tolist()])
    kept_rows = table[np.repeat(chosen, size)]
    valid = kept_rows[:, 4]
    return TrainedTokens(
        steps=len(kept),
        tokens=int(kept_rows[:, 3].sum()),
        tokens_valid=int(valid.sum()) if len(valid) and valid.min() >= 0 else None,
        lost_steps=len(runs) - len(kept),
        flags=("tokens_disagree",) if disagree else (),
    )


def _largest(parts: Sequence[StepTokens]) -> tuple[Ints, bool]:
    """The largest count of each replica in each run of a step, and whether its ranks disagree.

    Returns:
        [N, 5] step, attempt, replica, tokens, valid tokens; in order of the first three.
    """
    columns = [
        np.concatenate(column)
        for column in zip(
            *(
                (p.step, np.full(len(p.step), p.attempt), p.replica, p.tokens, p.tokens_valid)
                for p in parts
            ),
            strict=True,
        )
    ]
    table = np.unique(np.stack(columns, axis=1), axis=0)
    last = np.ones(len(table), np.bool_)
    last[:-1] = np.any(table[1:, :3] != table[:-1, :3], axis=1)
    return table[last], not last.all()
