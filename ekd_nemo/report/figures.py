"""The pictures of a report, each a function from content to a figure, or None if there is nothing to draw."""

# matplotlib's types are partly unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from ekd_nemo.metrics.quantity import Quantity
from ekd_nemo.metrics.summary import PHASE, MethodSummary, RunSummary
from ekd_nemo.records.phases import PHASES
from ekd_nemo.report.content import Content, band_of

Draw = Callable[[Content], Figure | None]

# Okabe and Ito's colours, told apart with any colour vision.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PHASE_COLOURS: Final = {
    "prerun": "#B0B0B0", "preprocess": "#8C8C8C", "teacher_forward": "#E69F00", "teacher_cache": "#F0C75E",
    "student_train": "#0072B2", "checkpoint": "#009E73", "idle": "#DDDDDD", "eval": "#CC79A7", "ept": "#56B4E9",
}  # fmt: skip
_SIZE: Final = (8.0, 3.4)
_KJ: Final = 1000.0


def power_over_time(content: Content) -> Figure | None:
    """Mean power of each method with one standard deviation across its runs."""
    methods = [m for m in content.summary.methods if content.of_method(m)]
    if not methods:
        return None
    figure, axes = _figure("time of the run [s]", "power of all accelerators [W]")
    for method, colour in zip(methods, _cycle(len(methods)), strict=True):
        band = band_of(content.of_method(method))
        axes.plot(band.at_s, band.mean, color=colour, lw=1.4, label=_named(method))
        if len(content.of_method(method)) > 1:
            axes.fill_between(
                band.at_s,
                band.mean - band.deviation,
                band.mean + band.deviation,
                color=colour,
                alpha=0.2,
                lw=0,
            )
    axes.set_ylim(bottom=0)
    return _done(figure, axes)


def cumulative_energy(content: Content) -> Figure | None:
    """Energy since the start of each method's first run; its phases below, a strip a method from the bottom up."""
    firsts = [(m, content.of_method(m)[0]) for m in content.summary.methods if content.of_method(m)]
    if not firsts:
        return None
    figure, axes = _figure("time of the run [s]", "energy so far [kJ]")
    strips = len(firsts)
    for row, ((method, profile), colour) in enumerate(zip(firsts, _cycle(strips), strict=True)):
        widths = np.diff(profile.edges_s)
        steps = np.where(np.isnan(profile.power_w), 0.0, profile.power_w) * widths
        axes.plot(
            profile.edges_s,
            np.append(0.0, np.cumsum(steps)) / _KJ,
            color=colour,
            lw=1.6,
            label=_named(method),
        )
        for start, end, phase in profile.phases:
            axes.axvspan(
                start,
                end,
                ymin=0.045 * row,
                ymax=0.045 * (row + 0.75),
                color=_PHASE_COLOURS[phase],
                lw=0,
            )
    top = axes.get_ylim()[1]
    axes.set_ylim(-top * 0.055 * strips, top)
    _phase_legend(axes, {phase for _, profile in firsts for _, _, phase in profile.phases})
    return _done(figure, axes)


def power_by_device(content: Content) -> Figure | None:
    """Each device of the first run that has more than one."""
    found = next(((r, p) for r, p in content.profiles.items() if len(p.devices_w) > 1), None)
    if found is None:
        return None
    run_id, profile = found
    figure, axes = _figure("time of the run [s]", "power [W]")
    middle = (profile.edges_s[:-1] + profile.edges_s[1:]) / 2
    for (uuid, power), colour in zip(
        profile.devices_w.items(), _cycle(len(profile.devices_w)), strict=True
    ):
        axes.plot(middle, power, color=colour, lw=1.0, label=uuid)
    axes.set_title(run_id, fontsize=9)
    axes.set_ylim(bottom=0)
    return _done(figure, axes)


def power_distribution(content: Content) -> Figure | None:
    """Boxes of the binned power of each run."""
    runs = [
        (run, content.profiles[run.run_id])
        for run in content.summary.runs
        if run.run_id in content.profiles
    ]
    if not runs:
        return None
    figure, axes = _figure("power of all accelerators [W]", "", rows=len(runs))
    values = [profile.power_w[~np.isnan(profile.power_w)] for _, profile in runs]
    axes.boxplot(
        values,
        orientation="horizontal",
        widths=0.6,
        flierprops={"markersize": 2},
        medianprops={"color": _COLOURS[1]},
    )
    axes.set_yticks(range(1, len(runs) + 1), [run.run_id for run, _ in runs], fontsize=8)
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    return _done(figure, axes, legend=False)


def energy_bars(content: Content) -> Figure | None:
    """E_run by method, split by phase, with the interval of its mean."""
    methods = [m for m in content.summary.methods if m.figures["e_run"].value is not None]
    if not methods:
        return None
    figure, axes = _figure("E_run [kJ]", "", rows=len(methods))
    for row, method in enumerate(methods):
        left = 0.0
        for phase in PHASES:
            part = method.figures.get(PHASE + phase)
            if part is not None and part.value is not None:
                axes.barh(
                    row, part.value / _KJ, left=left, height=0.6, color=_PHASE_COLOURS[phase], lw=0
                )
                left += part.value / _KJ
        whole = method.figures["e_run"]
        if whole.value is not None and whole.low is not None and whole.high is not None:
            axes.plot(
                [whole.low / _KJ, whole.high / _KJ],
                [row, row],
                color="black",
                lw=1.2,
                marker="|",
                ms=8,
            )
    axes.set_yticks(range(len(methods)), [_named(method) for method in methods], fontsize=8)
    axes.invert_yaxis()
    _phase_legend(
        axes, {n.removeprefix(PHASE) for m in methods for n in m.figures if n.startswith(PHASE)}
    )
    return _done(figure, axes)


def energy_and_quality(content: Content) -> Figure | None:
    """KL to the teacher on held-out text against E_run, a point a run; below and to the left is better."""
    points = [
        (run, energy, quality)
        for run in content.summary.runs
        if (energy := _value(run, "e_run")) is not None
        and (quality := _value(run, "val_kl")) is not None
    ]
    if not points:
        return None
    figure, axes = _figure("E_run [kJ]", "held-out KL to teacher [nats/token]")
    methods = content.summary.methods
    for method, colour in zip(methods, _cycle(len(methods)), strict=True):
        own = [
            (energy / _KJ, quality) for run, energy, quality in points if run.run_id in method.runs
        ]
        if own:
            axes.scatter(
                *zip(*own, strict=True), color=colour, s=36, label=_named(method), zorder=3
            )
    best = np.inf
    front: list[tuple[float, float]] = []
    for energy, quality in sorted((e / _KJ, q) for _, e, q in points):
        if quality < best:
            front.append((energy, quality))
            best = quality
    axes.plot(
        *zip(*front, strict=True), color="#999999", lw=1.0, ls="--", label="frontier", zorder=2
    )
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    return _done(figure, axes)


FIGURES: Final[dict[str, tuple[str, Draw]]] = {
    "power_over_time": ("Power over time", power_over_time),
    "cumulative_energy": ("Cumulative energy", cumulative_energy),
    "energy_bars": ("E_run by method and phase", energy_bars),
    "energy_and_quality": ("Energy and quality", energy_and_quality),
    "power_distribution": ("Distribution of power", power_distribution),
    "power_by_device": ("Power by device", power_by_device),
}


def _figure(x_label: str, y_label: str, rows: int | None = None) -> tuple[Figure, Any]:
    """A figure with one plot; for rows of bars or boxes its height follows their number."""
    size = _SIZE if rows is None else (_SIZE[0], 1.3 + 0.45 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E5E5E5", lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _done(figure: Figure, axes: Any, *, legend: bool = True) -> Figure:
    if legend:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _phase_legend(axes: Any, phases: set[str]) -> None:
    """Entries for the colours of phases, in their order."""
    for phase in PHASES:
        if phase in phases:
            axes.plot([], [], color=_PHASE_COLOURS[phase], lw=6, label=phase.replace("_", " "))


def _cycle(count: int) -> list[str]:
    return [_COLOURS[number % len(_COLOURS)] for number in range(count)]


def _named(method: MethodSummary) -> str:
    runs = len(method.runs)
    return method.name if runs == 1 else f"{method.name} ({runs} runs)"


def _value(run: RunSummary, name: str) -> float | None:
    quantity: Quantity = run.figures[name]
    return quantity.value
