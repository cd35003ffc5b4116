"""Scores as rows of text."""

from collections.abc import Sequence

from ekd_nemo.evals.results import Score


def score_rows(scores: Sequence[Score]) -> list[list[str]]:
    """A head, then one row per task and metric with one column per role; parts of groups are left out."""
    roles = sorted({score.role for score in scores}, key=lambda role: (role != "student", role))
    shown = [score for score in scores if score.group is None]
    keys = dict.fromkeys((score.task, score.metric, score.filter) for score in shown)
    cells = {(s.task, s.metric, s.filter, s.role): s for s in shown}
    head = ["task", "metric", "better", *roles]
    rows = [
        [
            *_labels(cells, key, roles),
            *(_cell(cells.get((*key, role))) for role in roles),
        ]
        for key in keys
    ]
    return [head, *rows]


def _labels(
    cells: dict[tuple[str, str, str, str], Score],
    key: tuple[str, str, str],
    roles: Sequence[str],
) -> list[str]:
    task, metric, filter_name = key
    some = next(cells[(*key, role)] for role in roles if (*key, role) in cells)
    better = {True: "higher", False: "lower", None: "?"}[some.higher_is_better]
    return [
        task,
        metric if filter_name == "none" else f"{metric} ({filter_name})",
        better,
    ]


def _cell(score: Score | None) -> str:
    if score is None:
        return "n/a"
    return f"{score.value:.4f}" + (f" ± {score.stderr:.4f}" if score.stderr is not None else "")
