"""Figures of how power spreads: against utilisation, as a distribution by method, as boxes by run."""

# matplotlib's types are partly unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from typing import Final

import numpy as np
from matplotlib.figure import Figure

from ekd_nemo.metrics.curve import Floats
from ekd_nemo.metrics.summary import MethodSummary
from ekd_nemo.report import style
from ekd_nemo.report.content import Content
from ekd_nemo.report.drawn import Absent
from ekd_nemo.report.over_time import NO_PROFILE, named

_POINTS_AT_MOST: Final = 500  # a method; every k-th beyond
_DISTRIBUTION_BINS: Final = 60


def power_against_utilisation(content: Content) -> Figure | Absent:
    """A point a device and bin of time, in a panel a method."""
    found = {
        method.name: points
        for method in content.drawn_methods
        if len(points := _utilisation_points(content, method))
    }
    if not found:
        return Absent("no run has records of utilisation beside those of power")
    columns = min(3, len(found))
    figure, every = style.panels(-(-len(found) // columns), columns, 2.2, sharey=True)
    colours = style.colours_of(method.name for method in content.summary.methods)
    for axes, (name, points) in zip(every, found.items(), strict=False):
        chosen = points[:: -(-len(points) // _POINTS_AT_MOST)]
        axes.plot(chosen[:, 0], chosen[:, 1], "o", ms=2.6, mew=0, alpha=0.45, color=colours[name])
        axes.set_title(style.short(name, 96 // columns))
        axes.set_xlim(-3, 103)
    style.from_zero(max(every[: len(found)], key=lambda axes: axes.dataLim.y1))
    for axes in every[len(found) :]:
        axes.set_visible(False)
    figure.supxlabel("utilisation [%]", fontsize=style.LARGE)
    figure.supylabel("power of an accelerator [W]", fontsize=style.LARGE)
    return figure


def _utilisation_points(content: Content, method: MethodSummary) -> Floats:
    """[N, 2] utilisation and power of every device in every bin that has both."""
    parts: list[Floats] = [np.zeros((0, 2))]
    for run in method.runs:
        if run not in content.profiles:
            continue
        busy = content.states[run].devices.get("util_pct", {})
        for uuid, power in content.profiles[run].devices_w.items():
            if uuid in busy:
                both = np.column_stack((busy[uuid], power))
                parts.append(both[~np.isnan(both).any(axis=1)])
    return np.concatenate(parts)


def power_distribution(content: Content) -> Figure | Absent:
    """Share of time at each power, all runs of a method together."""
    found = {m.name: _binned_power(content, m) for m in content.drawn_methods}
    found = {name: power for name, power in found.items() if len(power)}
    if not found:
        return Absent(NO_PROFILE)
    top = max(float(power.max()) for power in found.values())
    scale = style.power_scale(top)
    figure, axes = style.plot(2.8)
    edges = np.linspace(0.0, 1.02 * top, _DISTRIBUTION_BINS + 1) / scale.of_si
    colours = style.colours_of(method.name for method in content.summary.methods)
    runs = {m.name: len(content.of_method(m)) for m in content.drawn_methods}
    for name, power in found.items():
        counts, _ = np.histogram(power / scale.of_si, edges)
        share = 100 * counts / len(power)
        axes.stairs(share, edges, color=colours[name], lw=1.4, label=named(name, runs[name]))
        axes.stairs(share, edges, color=colours[name], alpha=0.15, fill=True)
    axes.set_xlabel(f"power of all accelerators [{scale.unit}]")
    axes.set_ylabel("share of time [%]")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    style.legend_above(figure, axes)
    return figure


def _binned_power(content: Content, method: MethodSummary) -> Floats:
    power = np.concatenate([profile.power_w for profile in content.of_method(method)])
    return power[~np.isnan(power)]


def power_of_runs(content: Content) -> Figure | Absent:
    """A box a run."""
    colours = style.colours_of(method.name for method in content.summary.methods)
    found = [
        (run, colours[method.name], power)
        for method in content.drawn_methods
        for run in method.runs
        if run in content.profiles
        and len(power := content.profiles[run].power_w[~np.isnan(content.profiles[run].power_w)])
    ]
    if not found:
        return Absent(NO_PROFILE)
    scale = style.power_scale(max(float(power.max()) for *_, power in found))
    figure, axes = style.rows_plot([run for run, *_ in found], 0.5)
    boxes = axes.boxplot(
        [power / scale.of_si for *_, power in found],
        positions=range(len(found)),
        orientation="horizontal",
        widths=0.62,
        whis=(5, 95),
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
        medianprops={"color": style.INK, "lw": 1.3},
        whiskerprops={"color": style.MUTED},
        capprops={"color": style.MUTED},
    )
    for box, (_, colour, _) in zip(boxes["boxes"], found, strict=True):
        box.set(facecolor=colour, alpha=0.55, edgecolor=colour)
    axes.set_xlabel(f"power of all accelerators [{scale.unit}]")
    axes.set_xlim(left=0)
    return figure
