"""Figures with a row or a point a method: energies, scores, efficiency, and what quality costs."""

# matplotlib's types are partly unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.figure import Figure

from ekd_nemo.metrics.bands import frontier_of
from ekd_nemo.metrics.quantity import Quantity
from ekd_nemo.metrics.summary import PHASE, SCORE, Figures, MethodSummary
from ekd_nemo.metrics.table_parts import others
from ekd_nemo.records.phases import PHASES
from ekd_nemo.report import style
from ekd_nemo.report.content import Content
from ekd_nemo.report.drawn import Absent
from ekd_nemo.report.over_time import named

_VIEWS: Final = {"e_run": "own", "e_charged": "charged", "e_amortised": "amortised"}
_VIEW_ALPHA: Final = {"e_run": 1.0, "e_charged": 0.62, "e_amortised": 0.32}
_EPT: Final = {"ept_in": "EPT_in", "ept_out": "EPT_out", "ept_total": "EPT_total"}
_BITS: Final = "bits_per_byte"
_UNKNOWN: Final = Quantity.missing("", "no run has this figure")


def energy_views(content: Content) -> Figure | Absent:
    """E_run of each method in its three views, with the 95 % interval of the mean."""
    return _grouped(content, _VIEWS, "E_run", per_token=False)


def inference_energy(content: Content) -> Figure | Absent:
    """Energy per token of the inference benchmark, each model at its best batch."""
    return _grouped(content, _EPT, "energy per token", per_token=True)


def _grouped(
    content: Content, views: Mapping[str, str], label: str, *, per_token: bool
) -> Figure | Absent:
    """Bars of several figures in one unit, a group a method; teacher and base above them where they have any."""
    rows = [
        (name, figures, colour)
        for name, figures, colour in _models(content, "ept_" if per_token else "e_run")
        if any(figures.get(view, _UNKNOWN).value is not None for view in views)
    ]
    if not rows:
        return _why(content, next(iter(views)))
    quantities = [figures.get(view, _UNKNOWN) for _, figures, _ in rows for view in views]
    largest = max(quantity.high or quantity.value or 0.0 for quantity in quantities)
    scale = style.energy_scale(largest, per_token=per_token)
    figure, axes = style.rows_plot([name for name, *_ in rows], len(views))
    height = 0.8 / len(views)
    for row, (_, figures, colour) in enumerate(rows):
        for place, view in enumerate(views):
            at = row + (place - (len(views) - 1) / 2) * height
            _bar(axes, at, height, figures.get(view, _UNKNOWN), scale, colour, place)
    for place, name in enumerate(views.values()):
        axes.barh([0], [0], color=style.MUTED, alpha=_alpha(place), label=name)
    axes.set_xlabel(f"{label} [{scale.unit}{'/token' if per_token else ''}]")
    axes.set_xlim(0, 1.14 * largest / scale.of_si)
    style.legend_above(figure, axes)
    return figure


def _models(content: Content, prefix: str) -> list[tuple[str, Figures, str]]:
    """Row name, figures and colour of teacher and base, as far as they have such figures, and of every method."""
    colours, runs = _colours(content), [run.run_id for run in content.summary.runs]
    beside = [
        (who, figures, style.INK)
        for who, figures in others(content.summary, prefix).items()
        if who.partition(" of ")[2] not in runs
    ]
    return beside + [
        (_row_name(method), method.figures, colours[method.name])
        for method in content.summary.methods
    ]


def _bar(axes: Any, at: float, height: float, quantity: Quantity, scale: style.Scale, colour: str,
         place: int) -> None:  # fmt: skip
    """A bar with its interval and value, or where it would be the words n/a."""
    if quantity.value is None:
        axes.text(0, at, " n/a", va="center", fontsize=7, color=style.MUTED)
        return
    value = quantity.value / scale.of_si
    axes.barh(at, value, 0.86 * height, color=colour, alpha=_alpha(place), lw=0)
    _interval(axes, at, quantity, scale.of_si)
    end = max(value, (quantity.high or 0.0) / scale.of_si)
    axes.text(end, at, f" {value:.4g}", va="center", fontsize=7, color=style.INK)


def _alpha(place: int) -> float:
    return list(_VIEW_ALPHA.values())[place]


def _interval(axes: Any, at: float, quantity: Quantity, unit: float) -> None:
    if quantity.low is not None and quantity.high is not None:
        ends = [quantity.low / unit, quantity.high / unit]
        axes.plot(ends, [at, at], color=style.INK, lw=1.0, marker="|", ms=5)


def energy_phases(content: Content) -> Figure | Absent:
    """E_run of each method by phase."""
    methods = [m for m in content.summary.methods if _of(m, "e_run").value is not None]
    if not methods:
        return _why(content, "e_run")
    scale = style.energy_scale(max(_of(m, "e_run").value or 0.0 for m in methods))
    figure, axes = style.rows_plot([_row_name(m) for m in methods])
    for row, method in enumerate(methods):
        left = 0.0
        for phase in PHASES:
            part = _of(method, PHASE + phase).value
            if part is not None:
                width = part / scale.of_si
                axes.barh(row, width, 0.62, left=left, color=style.PHASE_COLOURS[phase], lw=0)
                left += width
        _interval(axes, row, _of(method, "e_run"), scale.of_si)
    style.name_phases(
        axes,
        {name.removeprefix(PHASE) for m in methods for name in m.figures if name.startswith(PHASE)},
    )
    axes.set_xlabel(f"E_run [{scale.unit}]")
    axes.set_xlim(left=0)
    style.legend_above(figure, axes, 5)
    return figure


def scores(content: Content) -> Figure | Absent:
    """The score of each model on each task, with intervals; the teacher as a line across the task."""
    tasks = sorted(
        {
            n
            for m in content.summary.methods
            for n, q in m.figures.items()
            if _is_task(n) and q.value is not None
        }
    )
    if not tasks:
        return _why(content, "om_perf")
    methods = [
        m for m in content.summary.methods if any(_of(m, t).value is not None for t in tasks)
    ]
    figure, axes = style.rows_plot([t.removeprefix(SCORE) for t in tasks], max(2, len(methods)))
    colours, height = _colours(content), 0.76 / len(methods)
    for row, task in enumerate(tasks):
        teachers = {run.teacher[task].value for run in content.summary.runs if task in run.teacher}
        for value in sorted(v for v in teachers if v is not None):
            axes.plot([value, value], [row - 0.42, row + 0.42], color=style.INK, lw=1.6)
        for place, method in enumerate(methods):
            at = row + (place - (len(methods) - 1) / 2) * height
            quantity = _of(method, task)
            if quantity.value is not None:
                axes.plot([quantity.value], [at], "o", ms=5, color=colours[method.name])
                _interval(axes, at, quantity, 1.0)
    axes.plot([], [], color=style.INK, lw=1.6, label="teacher")
    for method in methods:
        axes.plot([], [], "o", ms=5, color=colours[method.name], label=_row_name(method))
    axes.set_xlabel("score, higher is better")
    style.legend_above(figure, axes)
    return figure


def _is_task(name: str) -> bool:
    return name.startswith(SCORE) and _BITS not in name


def performance(content: Content) -> Figure | Absent:
    """OM_perf and retention above chance of each method."""
    views = {"om_perf": "OM_perf", "retention": "above chance"}
    return _ratios(content, views, "of the teacher (1: as good as the teacher)", line=1.0)


def efficiency(content: Content) -> Figure | Absent:
    """Eff_overall of each method, at each model's best batch and at an equal one."""
    views = {"eff_overall": "best batch", "eff_overall_equal_batch": "equal batch"}
    return _ratios(content, views, "Eff_overall (1: as efficient as the teacher)", line=1.0)


def _ratios(content: Content, views: Mapping[str, str], label: str, line: float) -> Figure | Absent:
    """Points with intervals, a row a method, around a line of reference."""
    methods = [
        m for m in content.summary.methods if any(_of(m, view).value is not None for view in views)
    ]
    if not methods:
        return _why(content, next(iter(views)))
    figure, axes = style.rows_plot([_row_name(m) for m in methods], len(views))
    colours = _colours(content)
    for row, method in enumerate(methods):
        for place, (view, marker) in enumerate(zip(views, "os", strict=True)):
            quantity, at = _of(method, view), row + (place - 0.5) * 0.34
            if quantity.value is None:
                continue
            fill = {} if place == 0 else {"markerfacecolor": "none"}
            axes.plot([quantity.value], [at], marker, ms=6, color=colours[method.name], **fill)
            _interval(axes, at, quantity, 1.0)
            end = quantity.value if quantity.high is None else max(quantity.high, quantity.value)
            axes.text(end, at, f"  {quantity.value:.4f}", va="center", fontsize=7)
    axes.axvline(line, color=style.MUTED, lw=1.0, ls="--")
    for marker, name, fill in zip("os", views.values(), (style.MUTED, "none"), strict=True):
        axes.plot([], [], marker, ms=6, color=style.MUTED, markerfacecolor=fill, label=name)
    axes.set_xlabel(label)
    axes.margins(x=0.18)
    style.legend_above(figure, axes)
    return figure


def energy_and_quality(content: Content) -> Figure | Absent:
    """Quality against E_run (charged): runs small, means of methods large, the best trades joined."""
    sides = [
        ("val_kl", "held-out KL to teacher [nats/token]", False),
        ("om_perf", "OM_perf", True),
    ]
    known = [
        side for side in sides if any(_point(m.figures, side[0]) for m in content.summary.methods)
    ]
    if not known:
        return Absent(
            "no method has both E_run (charged) and a quality: held-out KL to the teacher, or OM_perf"
        )
    largest = max(
        point[0] for s in known for r in content.summary.runs if (point := _point(r.figures, s[0]))
    )
    scale = style.energy_scale(largest)
    figure, every = style.panels(1, len(known), 3.2)
    for axes, (quality, label, higher) in zip(every, known, strict=True):
        _trade(axes, content, quality, scale.of_si, higher=higher)
        axes.set_ylabel(f"{label}\n{'higher' if higher else 'lower'} is better")
        axes.set_xlabel(f"E_run, charged [{scale.unit}]")
        axes.set_xlim(0, 1.1 * largest / scale.of_si)
    style.legend_above(figure, every[0])
    return figure


def _trade(axes: Any, content: Content, quality: str, unit: float, *, higher: bool) -> None:
    means: list[tuple[float, float]] = []
    by_id = {run.run_id: run for run in content.summary.runs}
    for method in content.summary.methods:
        mean = _point(method.figures, quality)
        if mean is None:
            continue
        colour = _colours(content)[method.name]
        runs = [p for run in method.runs if (p := _point(by_id[run].figures, quality))]
        axes.plot(
            [e / unit for e, _ in runs],
            [q for _, q in runs],
            "o",
            ms=3.5,
            mew=0,
            alpha=0.5,
            color=colour,
        )
        axes.plot([mean[0] / unit], [mean[1]], "D", ms=7, color=colour, label=_row_name(method))
        means.append((mean[0] / unit, mean[1]))
    front = frontier_of(means, higher_is_better=higher)
    axes.plot(
        *zip(*front, strict=True), color=style.MUTED, lw=1.0, ls="--", zorder=1, label="frontier"
    )
    axes.margins(y=0.15)
    if not higher:
        axes.set_ylim(bottom=0)


def _point(figures: Mapping[str, Quantity], quality: str) -> tuple[float, float] | None:
    energy, value = figures.get("e_charged", _UNKNOWN).value, figures.get(quality, _UNKNOWN).value
    return None if energy is None or value is None else (energy, value)


def _of(method: MethodSummary, name: str) -> Quantity:
    return method.figures.get(name, _UNKNOWN)


def _row_name(method: MethodSummary) -> str:
    return named(method.name, len(method.runs))


def _colours(content: Content) -> dict[str, str]:
    return style.colours_of(method.name for method in content.summary.methods)


def _why(content: Content, name: str) -> Absent:
    """Why no method has a figure: the distinct reasons."""
    reasons: Sequence[str] = list(
        dict.fromkeys(_of(method, name).reason or "" for method in content.summary.methods)
    )
    return Absent("; ".join(reasons))
