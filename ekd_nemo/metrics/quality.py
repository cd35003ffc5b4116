"""OM_perf: how much of the teacher's scores the student keeps; scores that do not compare are refused."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ekd_nemo.errors import DataError
from ekd_nemo.evals.results import Score
from ekd_nemo.metrics.quantity import Quantity

NEAR_CHANCE: Final = 0.02  # where the harness gives no standard error
_Z_95: Final = 1.96
_HARNESS: Final = ("harness", "version", "settings_hash")
_WORDS: Final = {"harness": "harness", "version": "harness version", "settings_hash": "settings"}


class ScoreMismatchError(DataError):
    """Two scores that do not compare: another metric, harness or settings of the same task."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The scores of student and teacher on one task, seen to be comparable."""

    student: Score
    teacher: Score

    @property
    def ratio(self) -> Quantity:
        """Student over teacher, with the 95 % interval from both standard errors where there are any."""
        teacher = self.teacher.value
        if teacher <= 0:
            return Quantity.missing("", f"the teacher scores {teacher:g} on {self.teacher.task}")
        ratio = self.student.value / teacher
        error = _ratio_error(self)
        flags = ("teacher_near_chance",) if self.near_chance else ()
        if error is None:
            return Quantity(ratio, flags=flags)
        return Quantity(ratio, low=ratio - _Z_95 * error, high=ratio + _Z_95 * error, flags=flags)

    @property
    def retention(self) -> Quantity:
        """`(s - c) / (t - c)`, the part of what the teacher has above chance."""
        chance = self.teacher.chance
        if chance is None:
            return Quantity.missing("", f"the chance level of {self.teacher.task} is not known")
        above = self.teacher.value - chance
        if above <= 0:
            return Quantity.missing("", f"the teacher is not above chance on {self.teacher.task}")
        flags = ("teacher_near_chance",) if self.near_chance else ()
        kept = (self.student.value - chance) / above
        error = _ratio_error(self, chance)
        if error is None:
            return Quantity(kept, flags=flags)
        return Quantity(kept, low=kept - _Z_95 * error, high=kept + _Z_95 * error, flags=flags)

    @property
    def near_chance(self) -> bool:
        """Whether the teacher is at or near chance, see `near_chance`."""
        return near_chance(self.teacher)


def near_chance(score: Score) -> bool:
    """Whether a score is within two standard errors (or 0.02) of chance, or below it; not where chance is unknown."""
    if score.chance is None:
        return False
    margin = NEAR_CHANCE if score.stderr is None else 2 * score.stderr
    return score.value - score.chance <= margin


def _ratio_error(pair: Pair, chance: float = 0.0) -> float | None:
    """Standard error of the ratio of scores above `chance` by the delta method.

    As if the scores were independent; they are not, so that it is wide.
    """
    student, teacher = pair.student, pair.teacher
    if student.stderr is None or teacher.stderr is None:
        return None
    above, kept = teacher.value - chance, student.value - chance
    return math.hypot(student.stderr / above, kept * teacher.stderr / above**2)


@dataclass(frozen=True, slots=True)
class Performance:
    """OM_perf and what stands beside it.

    Attributes:
        om_perf: mean over tasks of student / teacher.
        om_perf_rms: the root of the mean square of the same ratios; another figure, under its own name.
        retention: mean over tasks of retention above chance.
        pairs: the tasks that went in.
    """

    om_perf: Quantity
    om_perf_rms: Quantity
    retention: Quantity
    pairs: tuple[Pair, ...]


def performance(scores: Iterable[Score], role: str = "student") -> Performance:
    """OM_perf of one model against the teacher, from all scores of a run.

    A task counts by its primary metric, a suite once by its group's row; metrics where lower is better never count.
    A task that one of the two lacks is left out and flagged.
    Raises: ScoreMismatchError naming the pair where metric, harness or settings of a task differ.
    """
    counted = [score for score in _distinct(scores) if _counts(score)]
    parts = {score.task for score in counted if score.group is not None}
    groups = {(score.role, score.task) for score in counted if score.is_group}
    rows = [s for s in counted if s.task not in parts or (s.role, s.group) not in groups]
    student = {score.task: score for score in rows if score.role == role}
    teacher = {score.task: score for score in rows if score.role == "teacher"}
    if not student or not teacher:
        reason = f"no scores of the {role if not student else 'teacher'}"
        missing = Quantity.missing("", reason)
        return Performance(missing, missing, missing, ())
    pairs = tuple(
        _checked(student[task], teacher[task]) for task in sorted(student.keys() & teacher.keys())
    )
    flags = ("tasks_without_partner",) if student.keys() != teacher.keys() else ()
    return performance_of(pairs, flags)


def _distinct(scores: Iterable[Score]) -> list[Score]:
    """Scores in a fixed order; a student's and a base's result may hold the same suite twice in two files."""
    return sorted(scores, key=lambda s: (s.role, s.task, s.metric, s.filter, str(s.source)))


def _counts(score: Score) -> bool:
    return score.primary and score.higher_is_better is not False


def _checked(student: Score, teacher: Score) -> Pair:
    """The pair, or an error that names both."""
    what = _difference(student, teacher)
    if what is not None:
        raise ScoreMismatchError(
            f"{student.task}: {student.role} ({student.source}) and teacher ({teacher.source}) differ in {what}; "
            "OM_perf takes the same task, metric, harness and settings"
        )
    return Pair(student, teacher)


def _difference(student: Score, teacher: Score) -> str | None:
    if (student.metric, student.filter) != (teacher.metric, teacher.filter):
        return f"metric: {_metric(student)} against {_metric(teacher)}"
    for name in _HARNESS:
        if getattr(student, name) != getattr(teacher, name):
            return f"{_WORDS[name]}: {getattr(student, name)} against {getattr(teacher, name)}"
    return None


def _metric(score: Score) -> str:
    return score.metric if score.filter == "none" else f"{score.metric}/{score.filter}"


def performance_of(pairs: Sequence[Pair], flags: tuple[str, ...] = ()) -> Performance:
    """OM_perf of pairs that were checked."""
    if not pairs:
        missing = Quantity.missing("", "student and teacher have no task in common", flags)
        return Performance(missing, missing, missing, ())
    ratios = [pair.ratio for pair in pairs]
    return Performance(
        _mean(ratios, "mean", flags),
        _mean(ratios, "rms", flags),
        _mean([pair.retention for pair in pairs], "mean", flags),
        tuple(pairs),
    )


def _mean(
    parts: Sequence[Quantity], kind: Literal["mean", "rms"], flags: tuple[str, ...]
) -> Quantity:
    """Mean or root mean square; one missing part makes it missing. An interval only for the mean."""
    flags = (*flags, *(flag for part in parts for flag in part.flags))
    absent = next((part for part in parts if part.value is None), None)
    if absent is not None:
        return Quantity.missing("", absent.reason or "", flags)
    values = [part.value for part in parts if part.value is not None]
    if kind == "rms":
        return Quantity(
            math.sqrt(math.fsum(value**2 for value in values) / len(values)), flags=flags
        )
    mean = math.fsum(values) / len(values)
    if any(part.low is None for part in parts):
        return Quantity(mean, flags=flags)
    half = math.hypot(*(_half_width(part) for part in parts)) / len(parts)
    return Quantity(mean, low=mean - half, high=mean + half, flags=flags)


def _half_width(part: Quantity) -> float:
    assert part.low is not None and part.high is not None
    return (part.high - part.low) / 2


def shown_scores(scores: Iterable[Score], role: str) -> dict[str, Quantity]:
    """The scores of one model that a table shows, as `task metric`.

    Those are primary metrics and bits per byte; of a suite only the group's row.
    """
    rows = [score for score in _distinct(scores) if score.role == role]
    groups = {score.task for score in rows if score.is_group}
    return {
        f"{score.task} {_metric(score)}": _shown(score)
        for score in rows
        if (score.primary or score.metric == "bits_per_byte") and score.group not in groups
    }


def _shown(score: Score) -> Quantity:
    unit = "bits/byte" if score.metric == "bits_per_byte" else ""
    # Where guessing gets nothing, a score of nothing needs no flag to be seen.
    flags = ("near_chance",) if score.chance and near_chance(score) else ()
    if score.stderr is None:
        return Quantity(score.value, unit, flags=flags)
    half = _Z_95 * score.stderr
    return Quantity(score.value, unit, low=score.value - half, high=score.value + half, flags=flags)
