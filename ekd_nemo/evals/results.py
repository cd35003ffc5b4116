"""The scores of a run, as the harness wrote them, one row a metric."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ekd_nemo.evals.eval_dir import EvalDir, Stored
from ekd_nemo.evals.harness_json import Figure, HarnessResult
from ekd_nemo.evals.harnesses import HARNESSES
from ekd_nemo.evals.known_tasks import chance_of, facts_of, primary_of
from ekd_nemo.records.rundir import RunDir


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of one model on one task.

    Attributes:
        role: `student`, `teacher` or `base`; `model` for a folder evaluated on its own.
        filter: how the harness read the answer; `none` for log-likelihoods.
        stderr: standard error as the harness gives it; None where it gives none.
        primary: the one metric of the task that counts in OM_perf; never one where lower is better.
        chance: what guessing gets in this metric; None where it is not one known number.
        group: the suite that the task is a part of; OM_perf takes `is_group` rows and leaves their parts out.
        settings_hash: equal if and only if two models were asked the same in the same way.
    """

    role: str
    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    primary: bool
    chance: float | None
    group: str | None
    is_group: bool
    n_samples: int | None
    harness: str
    version: str
    settings_hash: str
    model: str
    weights_hash: str
    source: Path


def read_results(run_dir: Path) -> list[Score]:
    """Every score under `eval/` of a run; none if nothing has been evaluated.

    Raises:
        DataError: on a file that is broken or does not belong to its settings.
    """
    return read_eval_dir(RunDir(run_dir).eval)


def read_eval_dir(folder: Path) -> list[Score]:
    """Every score in a folder that `ekd eval` wrote; a task counts once, by lm-eval where both have run it."""
    found: list[Score] = []
    for harness in HARNESSES:
        for stored in EvalDir(folder, harness).stored():
            counted = {(score.role, score.task) for score in found if score.harness != harness.name}
            rows = list(_scores(stored))
            found.extend(
                replace(row, primary=False) if (row.role, row.task) in counted else row
                for row in rows
            )
    return found


def pair_scores(
    scores: Iterable[Score], student: str = "student", teacher: str = "teacher"
) -> list[tuple[Score, Score]]:
    """Student and teacher rows of the same task, metric and filter; whether settings agree is not checked here."""
    rows = list(scores)
    of_teacher = {(s.harness, s.task, s.metric, s.filter): s for s in rows if s.role == teacher}
    return [
        (score, of_teacher[key])
        for score in rows
        if score.role == student
        and (key := (score.harness, score.task, score.metric, score.filter)) in of_teacher
    ]


def _scores(stored: Stored) -> Iterator[Score]:
    result = stored.read()
    for task in result.tasks:
        figures = list(result.figures(task))
        higher = result.of_task("higher_is_better", task)
        found = [(figure.metric, figure.filter) for figure in figures]
        primary = primary_of(facts_of(task, _metadata(result, task)), found, higher)
        for figure in figures:
            chance = _chance(result, task, figure.metric)
            yield _score(stored, result, task, figure, higher.get(figure.metric), primary, chance)


def _metadata(result: HarnessResult, task: str) -> Mapping[str, Any]:
    return result.of_task("configs", task).get("metadata") or {}


def _chance(result: HarnessResult, task: str, metric: str) -> float | None:
    """What guessing gets: as the task says, as is known of it, or the mean over the items of a group's parts."""
    stated = chance_of(metric, _metadata(result, task))
    if stated is not None:
        return stated
    parts = result.parts(task)
    if parts:
        levels = [(_chance(result, part, metric), result.num_samples(part)) for part in parts]
        known = [(chance, count) for chance, count in levels if chance is not None and count]
        total = sum(count for _, count in known)
        return (
            sum(chance * count for chance, count in known) / total
            if len(known) == len(parts)
            else None
        )
    facts = facts_of(task, {})
    return facts.chance if facts is not None and facts.metric == metric else None


def _score(
    stored: Stored,
    result: HarnessResult,
    task: str,
    figure: Figure,
    higher_is_better: bool | None,
    primary: tuple[str, str] | None,
    chance: float | None,
) -> Score:
    return Score(
        role=stored.role,
        task=task,
        metric=figure.metric,
        filter=figure.filter,
        value=figure.value,
        stderr=figure.stderr,
        higher_is_better=higher_is_better,
        primary=(figure.metric, figure.filter) == primary,
        chance=chance,
        group=result.group_of(task),
        is_group=result.is_group(task),
        n_samples=result.num_samples(task),
        harness=result.harness,
        version=result.version,
        settings_hash=result.settings_hash(task),
        model=stored.settings.model.path,
        weights_hash=stored.settings.model.weights_sha256,
        source=stored.results,
    )
