"""What a crash undid: the time from which the work of an attempt is not in the weights."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

from ekd_nemo.metrics.marks import RankMarks
from ekd_nemo.metrics.phase_stack import PHASE_NUMBER
from ekd_nemo.metrics.phase_time import Window
from ekd_nemo.metrics.tokens import newest_attempts

_CHECKPOINT: Final = PHASE_NUMBER["checkpoint"]
_PRERUN: Final = PHASE_NUMBER["prerun"]
_TRAIN: Final = PHASE_NUMBER["student_train"]
_LATER: Final = {PHASE_NUMBER[phase] for phase in ("eval", "ept", "idle")}


def lost_from(ranks: Sequence[RankMarks]) -> dict[tuple[str, int], int]:
    """Boot id and attempt to the time on that clock from which its work was lost; attempts that lost none are absent.

    An attempt loses what came after its last step that is in the weights, and after the checkpoint that followed that
    step, if a later attempt ran steps of its own: when it had run further steps, or was killed. An attempt that began
    to train and came to no step is lost whole, if a later one began as well; others without a step, such as those
    that build shards or export, lose nothing.
    """
    if len({rank.key.attempt for rank in ranks}) < 2:
        return {}  # the common case, also of the largest records
    done: dict[int, set[int]] = defaultdict(set)
    killed: set[int] = set()
    for rank in ranks:
        done[rank.key.attempt].update(rank.steps.tolist())
        if "unclosed_attempt" in rank.flags:
            killed.add(rank.key.attempt)
    began = _began(ranks, done)
    newest, last_begun = max((a for a in done if done[a]), default=0), max(began, default=0)
    kept = _kept(done)
    found: dict[tuple[str, int], int] = {}
    for rank in ranks:
        attempt = rank.key.attempt
        steps = done[attempt]
        if not steps and not (attempt in began and attempt < last_begun):
            continue
        if attempt == newest or (steps and steps == kept[attempt] and attempt not in killed):
            continue
        place, begin = (rank.key.boot_id, attempt), _begin(rank, max(kept[attempt], default=None))
        found[place] = max(begin, found.get(place, 0))
    return found


def with_losses(
    windows: Mapping[str, Sequence[Window]], ranks: Sequence[RankMarks]
) -> dict[str, tuple[Window, ...]]:
    """The windows by boot id, with the time from which each attempt's work was lost."""
    lost = lost_from(ranks)
    return {
        boot: tuple(replace(one, lost_ns=lost.get((boot, one.attempt))) for one in of_boot)
        for boot, of_boot in windows.items()
    }


def _began(ranks: Sequence[RankMarks], done: Mapping[int, Set[int]]) -> set[int]:
    """The attempts that trained or got ready for it: with steps, in a step, or with nothing but `prerun` of E_run's.

    A cache's building gets ready as well and then goes on to `teacher_cache`; where it died before, it is lost alike.
    """
    phases: dict[int, set[int]] = defaultdict(set)
    for rank in ranks:
        phases[rank.key.attempt].update(rank.stretches.phase.tolist())
    return {
        attempt
        for attempt, seen in phases.items()
        if done[attempt] or _TRAIN in seen or seen - _LATER == {_PRERUN}
    }


def _kept(done: Mapping[int, Iterable[int]]) -> dict[int, set[int]]:
    """The steps of each attempt that are in the weights."""
    tried: dict[int, list[int]] = defaultdict(list)
    for attempt, steps in done.items():
        for step in steps:
            tried[step].append(attempt)
    kept: dict[int, set[int]] = {attempt: set() for attempt in done}
    for step, attempt in newest_attempts(tried).items():
        kept[attempt].add(step)
    return kept


def _begin(rank: RankMarks, last: int | None) -> int:
    """The end of a rank's last kept step and of the checkpoint that followed it; its beginning without one."""
    if last is None:
        return int(rank.stretches.start_ns.min(initial=0))
    step_end = int(rank.step_ns[rank.steps <= last].max(initial=0))
    after = rank.step_ns[rank.steps > last]
    made = rank.stretches
    saved = (made.phase == _CHECKPOINT) & (made.start_ns >= step_end)
    if len(after):
        saved &= made.start_ns < after.min()
    return max(step_end, int(made.end_ns[saved].max(initial=0)))
