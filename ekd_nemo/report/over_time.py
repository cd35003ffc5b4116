"""Figures over the time of a run: power, energy so far, devices, utilisation, temperature and memory."""

# matplotlib's types are partly unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.figure import Figure

from ekd_nemo.metrics.bands import band_of, mean_known
from ekd_nemo.metrics.curve import Floats
from ekd_nemo.metrics.summary import MethodSummary
from ekd_nemo.report import style
from ekd_nemo.report.content import Content
from ekd_nemo.report.drawn import Absent

NO_PROFILE: Final = "no run has power records and marks of the same time"
_SHADED_AT_MOST: Final = 12
_LINES_AT_MOST: Final = 8
_PANELS_AT_MOST: Final = 6
_GIB: Final = float(1 << 30)


def power_over_time(content: Content) -> Figure | Absent:
    """Mean power of each method with one standard deviation across its runs."""
    curves = {
        method.name: [profile.power_w for profile in content.of_method(method)]
        for method in content.drawn_methods
    }
    if not curves:
        return Absent(NO_PROFILE)
    scale = style.power_scale(_largest([c for parts in curves.values() for c in parts]))
    figure, axes = style.plot()
    _bands(axes, content, curves, scale.of_si)
    axes.set_ylabel(f"power of all accelerators [{scale.unit}]")
    _time_axis(axes, content)
    style.legend_above(figure, axes)
    return figure


def cumulative_energy(content: Content) -> Figure | Absent:
    """Energy since the start, mean and deviation over a method's runs, before the phases of its first run.

    Phases of one method are not at the times of another's: several methods are drawn together without phases, and
    below each by itself with its own.
    """
    methods = content.drawn_methods
    if not methods:
        return Absent(NO_PROFILE)
    figure, together, alone = _energy_plots(min(len(methods), _SHADED_AT_MOST))
    curves = {m.name: [p.energy_so_far_j for p in content.of_method(m)] for m in methods}
    scale = style.energy_scale(_largest([c for parts in curves.values() for c in parts]))
    phases: set[str] = set()
    for axes, method in zip(alone, methods, strict=False):
        of_method = {method.name: curves[method.name]}
        _bands(axes, content, of_method, scale.of_si, at_edges=True)
        phases |= _shade_phases(axes, content, method)
        if axes is not together:
            axes.set_title(style.short(method.name, 48), color=_colours(content)[method.name])
    if together not in alone:
        _bands(together, content, curves, scale.of_si, at_edges=True)
    style.from_zero(together)
    for axes in {together, *alone}:
        axes.set_ylabel(f"energy so far [{scale.unit}]")
        _time_axis(axes, content)
        if axes is not together:
            axes.label_outer()
    style.legend_above(figure, together)
    style.phases_below(figure, phases)
    return figure


def _energy_plots(shaded: int) -> tuple[Figure, Any, list[Any]]:
    """A figure, its plot of all methods, and its plots of one method; those are the same for one method alone."""
    if shaded == 1:
        figure, axes = style.plot(3.4)
        return figure, axes, [axes]
    rows = -(-shaded // 2)
    figure = Figure(figsize=(style.WIDTH_IN, 3.3 + 1.7 * rows), layout="constrained")
    grid = figure.add_gridspec(rows + 1, 2, height_ratios=[2.0, *([1.0] * rows)])
    together = figure.add_subplot(grid[0, :])
    alone = [
        figure.add_subplot(grid[1 + place // 2, place % 2], sharex=together, sharey=together)
        for place in range(shaded)
    ]
    return figure, together, alone


def _shade_phases(axes: Any, content: Content, method: MethodSummary) -> set[str]:
    """The phases of a method's first run behind its curve, each as high as its share of the time; which there are."""
    profile = content.of_method(method)[0]
    unit = style.time_scale(content.longest_s).of_si
    edges = profile.phase_edges_s
    shares = profile.phase_shares(edges)
    bottom = np.zeros(len(edges) - 1)
    for phase, share in shares.items():
        axes.stairs(
            bottom + share,
            edges / unit,
            baseline=bottom,
            fill=True,
            color=style.PHASE_COLOURS[phase],
            alpha=style.SHADE,
            lw=0,
            zorder=0,  # the grid is at 0.5
            transform=axes.get_xaxis_transform(),  # 1 is the top of the plot, whatever energy is there
        )
        bottom = bottom + share
    return set(shares)


def power_by_device(content: Content) -> Figure | Absent:
    """Each accelerator of each method's first run that has more than one."""
    found = [
        (run, content.profiles[run])
        for method in content.drawn_methods
        for run in [next(r for r in method.runs if r in content.profiles)]
        if len(content.profiles[run].devices_w) > 1
    ][:_PANELS_AT_MOST]
    if not found:
        reason = "no run has more than one accelerator" if content.profiles else NO_PROFILE
        return Absent(reason)
    figure, every = style.panels(len(found), sharex=True, sharey=True)
    unit = style.time_scale(content.longest_s).of_si
    for axes, (run, profile) in zip(every, found, strict=True):
        axes.set_title(run)
        axes.set_ylabel("power [W]")
        _device_lines(axes, profile.middles_s / unit, profile.devices_w)
    style.from_zero(max(every, key=lambda axes: axes.dataLim.y1))
    names = {tuple(axes.get_legend_handles_labels()[1]) for axes in every}
    if len(names) == 1:
        style.legend_above(figure, every[0])
    else:
        for axes in every:
            axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.04), handlelength=1.2)
    _time_axis(every[-1], content)
    return figure


def _device_lines(axes: Any, at: Floats, devices: Mapping[str, Floats]) -> None:
    """A line a device; of many only median and extremes."""
    if len(devices) <= _LINES_AT_MOST:
        names = _shortened(list(devices))
        for uuid, colour in style.colours_of(devices).items():
            axes.plot(at, devices[uuid], color=colour, lw=1.0, label=names[uuid])
        return
    table = np.array(list(devices.values()))
    known = ~np.isnan(table).all(axis=0)
    low, middle, high = (np.nanpercentile(table[:, known], q, axis=0) for q in (0, 50, 100))
    label = f"median of {len(devices)}, band from lowest to highest"
    axes.fill_between(at[known], low, high, color=style.SERIES[0], alpha=0.25, lw=0)
    axes.plot(at[known], middle, color=style.SERIES[0], label=label)


def utilisation(content: Content) -> Figure | Absent:
    """Utilisation as the driver or the kernel gives it."""
    return _state_over_time(content, "util_pct", "utilisation [%]", 1.0, top=100.0)


def temperature(content: Content) -> Figure | Absent:
    """Temperature of the boards."""
    return _state_over_time(content, "temperature_c", "temperature [°C]", 1.0, bottom=None)


def memory(content: Content) -> Figure | Absent:
    """Memory of an accelerator in use; where that is no board, RAM of the node."""
    drawn = _state_over_time(content, "memory_used_bytes", "memory in use [GiB]", _GIB)
    if not isinstance(drawn, Absent):
        return drawn
    return _state_over_time(content, "ram_used_bytes", "RAM in use [GiB]", _GIB)


def _state_over_time(
    content: Content, fact: str, label: str, unit: float, top: float | None = None, bottom: float | None = 0.0
) -> Figure | Absent:  # fmt: skip
    """Mean over a run's devices, then mean and deviation over a method's runs."""
    curves: dict[str, list[Floats]] = {}
    for method in content.drawn_methods:
        found = [mean for run in method.runs if (mean := state_of(content, run, fact)) is not None]
        if found:
            curves[method.name] = found
    if not curves:
        return Absent(f"no run has records of {label.partition(' [')[0]}")
    figure, axes = style.plot(2.8)
    _bands(axes, content, curves, unit, limits=(bottom, top))
    axes.set_ylabel(label)
    _time_axis(axes, content)
    style.legend_above(figure, axes)
    return figure


def state_of(content: Content, run: str, fact: str) -> Floats | None:
    """A fact's mean over the devices (or hosts) of a run, by bin; None where nothing was read."""
    states = content.states.get(run)
    if states is None:
        return None
    parts = list({**states.devices, **states.hosts}.get(fact, {}).values())
    if not parts or np.isnan(parts).all():
        return None
    return mean_known(parts)


def _bands(
    axes: Any,
    content: Content,
    curves: Mapping[str, Sequence[Floats]],
    unit: float,
    *,
    at_edges: bool = False,
    limits: tuple[float | None, float | None] = (0.0, None),
) -> None:
    """A line and a band for each method; bands end at the limits of what the quantity can be."""
    width_s = float(next(iter(content.profiles.values())).edges_s[1])
    time_unit = style.time_scale(content.longest_s).of_si
    dashes = style.dashes_of(method.name for method in content.summary.methods)
    for name, parts in curves.items():
        band = band_of(parts)
        at = (np.arange(len(band.mean)) + (0.0 if at_edges else 0.5)) * width_s / time_unit
        colour = _colours(content)[name]
        mean, deviation = band.mean / unit, band.deviation / unit
        axes.plot(at, mean, color=colour, ls=dashes[name], label=named(name, len(parts)))
        if len(parts) > 1:
            low, high = mean - deviation, mean + deviation
            if limits != (None, None):
                low, high = (np.clip(edge, *limits) for edge in (low, high))
            axes.fill_between(at, low, high, color=colour, alpha=0.25, lw=0)
    if limits[0] == 0.0:
        style.from_zero(axes, limits[1])


def _time_axis(axes: Any, content: Content) -> None:
    scale = style.time_scale(content.longest_s)
    axes.set_xlabel(f"time of the run [{scale.unit}]")
    axes.set_xlim(0, content.longest_s / scale.of_si)


def _colours(content: Content) -> dict[str, str]:
    return style.colours_of(method.name for method in content.summary.methods)


def _largest(curves: Sequence[Floats]) -> float:
    return max((float(np.nanmax(c)) for c in curves if not np.isnan(c).all()), default=0.0)


def named(method: str, runs: int) -> str:
    """A method with the number of its runs."""
    return method if runs == 1 else f"{method} ({runs} runs)"


def _shortened(names: Sequence[str]) -> dict[str, str]:
    """UUIDs by as many of their first characters as tell them apart, 12 at least."""
    length = 12
    while len({name[:length] for name in names}) < len(names):
        length += 4
    return {name: name if len(name) <= length + 1 else name[:length] + "…" for name in names}
