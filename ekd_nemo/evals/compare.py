"""`ekd eval compare`: two evaluated models, task by task, on the items that both were given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ekd_nemo.errors import UserError
from ekd_nemo.evals.eval_dir import EvalDir, Stored
from ekd_nemo.evals.harness_json import HarnessResult
from ekd_nemo.evals.items import compare_items, read_items
from ekd_nemo.evals.paired import FEW_ITEMS, Difference
from ekd_nemo.records.rundir import RunDir

_ROLES = ("student", "teacher", "base", "model")


@dataclass(frozen=True)
class Side:
    """One of the two models: a folder of results and a role in it."""

    home: EvalDir
    role: str

    def results(self) -> dict[str, Stored]:
        """By task.

        Raises:
            UserError: if nothing is stored for the role.
        """
        stored = self.home.stored()
        found = {one.settings.task: one for one in stored if one.role == self.role}
        if not found:
            roles = ", ".join(sorted({one.role for one in stored})) or "none"
            raise UserError(
                f"{self.home.path}: no results of a {self.role}; evaluated here: {roles}"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of one task; `same_settings`: whether both were asked in the same way, not only the same items."""

    task: str
    metric: str
    filter: str
    higher_is_better: bool | None
    same_settings: bool
    difference: Difference

    @property
    def verdict(self) -> str:
        """In words, what the items show."""
        if self.difference.low is None:
            return f"fewer than {FEW_ITEMS} items"
        if not self.difference.shown:
            return "no difference shown"
        if self.higher_is_better is None:
            return "different"
        return (
            "first better"
            if (self.difference.difference > 0) is self.higher_is_better
            else "second better"
        )


def find_side(text: str, role: str | None = None) -> Side:
    """A run (its student), `RUN:teacher`, or a folder that `ekd eval lm` wrote.

    Raises:
        UserError: if there is no such folder.
    """
    head, colon, tail = text.rpartition(":")
    if colon and tail in _ROLES:
        text, role = head, tail
    path = Path(text)
    if (path / "run.json").is_file():
        return Side(EvalDir(RunDir(path).eval), role or "student")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run, RUN:teacher, or a folder of results")
    home = EvalDir(path)
    roles = {stored.role for stored in home.stored()}
    return Side(home, role or (roles.pop() if len(roles) == 1 else "student"))


def compare_sides(first: Side, second: Side) -> list[Row]:
    """Compare every task that both have done.

    Raises:
        UserError: if they have none in common, or were given different items.
        DataError: on a broken log.
    """
    ours, theirs = first.results(), second.results()
    common = [task for task in ours if task in theirs]
    if not common:
        raise UserError(f"no task in common: {', '.join(ours)} against {', '.join(theirs)}")
    return [
        row for task in common for row in _rows(task, (first, ours[task]), (second, theirs[task]))
    ]


def _rows(task: str, first: tuple[Side, Stored], second: tuple[Side, Stored]) -> Iterator[Row]:
    results = [stored.read() for _, stored in (first, second)]
    logs = [read_items(side.home.samples(stored.role, task)) for side, stored in (first, second)]
    higher = _directions(results[0], task)
    same = results[0].settings_hash(task) == results[1].settings_hash(task)
    for (metric, filter_name), difference in compare_items(*logs, task=task).items():
        yield Row(
            task=task,
            metric=metric,
            filter=filter_name,
            higher_is_better=higher.get(metric),
            same_settings=same,
            difference=difference,
        )


def _directions(result: HarnessResult, task: str) -> dict[str, bool | None]:
    """Which way each metric is better, also of a group's parts."""
    found: dict[str, bool | None] = {}
    for name in (*result.parts(task), task):
        found.update(result.of_task("higher_is_better", name))
    return found


def compare_rows(rows: Sequence[Row]) -> list[list[str]]:
    """A head and one line of text per row."""
    head = [
        "task",
        "metric",
        "items",
        "first",
        "second",
        "difference",
        "95 % interval",
        "only 1st:2nd",
        "p",
        "verdict",
    ]
    return [head, *(_cells(row) for row in rows)]


def _cells(row: Row) -> list[str]:
    found = row.difference
    interval = "n/a" if found.low is None else f"{found.low:+.4f} .. {found.high:+.4f}"
    metric = row.metric if row.filter == "none" else f"{row.metric} ({row.filter})"
    return [
        row.task,
        metric,
        str(found.num_items),
        f"{found.first:.4f}",
        f"{found.second:.4f}",
        f"{found.difference:+.4f}",
        interval,
        "n/a" if found.only_first is None else f"{found.only_first}:{found.only_second}",
        "n/a" if found.p_value is None else f"{found.p_value:.3g}",
        row.verdict if row.same_settings else f"{row.verdict}; settings differ",
    ]
