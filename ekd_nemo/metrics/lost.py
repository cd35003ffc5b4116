"""What a crash undid: the time from which the work of an attempt is not in the weights."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

from ekd_nemo.metrics.marks import RankMarks
from ekd_nemo.metrics.phase_stack import PHASE_NUMBER
from ekd_nemo.metrics.phase_time import Window
from ekd_nemo.metrics.tokens import newest_attempts
from ekd_nemo.records.clocks import ClockOffsets

_CHECKPOINT: Final = PHASE_NUMBER["checkpoint"]
_PRERUN: Final = PHASE_NUMBER["prerun"]
_TRAIN: Final = PHASE_NUMBER["student_train"]
_LATER: Final = {PHASE_NUMBER[phase] for phase in ("eval", "ept", "idle")}


Place = tuple[str, int]  # boot id and attempt


def lost_from(ranks: Sequence[RankMarks], clocks: Sequence[ClockOffsets] = ()) -> dict[Place, int]:
    """Boot id and attempt to the time on that clock from which its work was lost; attempts that lost none are absent.

    An attempt loses what came after its last step that is in the weights, and after the checkpoint that followed that
    step, if a later attempt ran steps of its own: when it had run further steps, or was killed. An attempt that began
    to train and came to no step is lost whole, if a later one began as well; others without a step, such as those
    that build shards or export, lose nothing. The nodes of a split run's teacher mark no steps: theirs are the
    student's times on their clocks, where `clocks` tells how far these lie apart.
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
    found: dict[Place, int] = {}
    stepped, without = set[Place](), set[Place]()
    for rank in ranks:
        attempt = rank.key.attempt
        steps = done[attempt]
        if not steps and not (attempt in began and attempt < last_begun):
            continue
        if attempt == newest or (steps and steps == kept[attempt] and attempt not in killed):
            continue
        place, begin = (rank.key.boot_id, attempt), _begin(rank, max(kept[attempt], default=None))
        found[place] = max(begin, found.get(place, 0))
        if kept[attempt]:
            (stepped if len(rank.steps) else without).add(place)
    return found | _by_clock(found, without - stepped, stepped, clocks)


def _by_clock(
    found: Mapping[Place, int],
    without: Set[Place],
    stepped: Set[Place],
    clocks: Sequence[ClockOffsets],
) -> dict[Place, int]:
    """For nodes without steps, the latest time of those with steps in their attempt, on their own clock."""
    times: dict[Place, int] = {}
    for measured in clocks:
        ahead_ns = {offset.boot_id: offset.ahead_ns for offset in measured.offsets}
        begun = [
            found[boot, attempt] - ahead_ns[boot]
            for boot, attempt in stepped
            if attempt == measured.attempt and boot in ahead_ns
        ]
        for boot, attempt in without:
            if begun and attempt == measured.attempt and boot in ahead_ns:
                times[boot, attempt] = max(0, max(begun) + ahead_ns[boot])
    return times


def with_losses(
    windows: Mapping[str, Sequence[Window]],
    ranks: Sequence[RankMarks],
    clocks: Sequence[ClockOffsets] = (),
) -> dict[str, tuple[Window, ...]]:
    """The windows by boot id, with the time from which each attempt's work was lost."""
    lost = lost_from(ranks, clocks)
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
