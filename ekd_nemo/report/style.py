"""How figures look: colours, axes, units and legends; on paper as they are, on a page as colours of its theme."""

# matplotlib's types are partly unknown.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ekd_nemo.records.phases import PHASES

INK: Final = "#1f2328"
MUTED: Final = "#5b636d"
GRID: Final = "#e2e5e9"
# Okabe and Ito's colours, told apart with any colour vision.
SERIES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
PHASE_COLOURS: Final = {
    "prerun": "#a9afb7", "preprocess": "#858c95", "teacher_forward": "#e69f01", "teacher_cache": "#f0c75e",
    "student_train": "#0072b3", "checkpoint": "#009e74", "eval": "#cc79a8", "ept": "#56b4ea", "idle": "#dcdfe3",
}  # fmt: skip

# Each colour in the dark theme of a page. The keys are distinct, so that they name the colour.
DARK: Final = {
    INK: "#e6e9ed", MUTED: "#a0a8b2", GRID: "#343a42",
    "#0072b2": "#4aa8e0", "#d55e00": "#f4874a", "#009e73": "#2fc598", "#cc79a7": "#e39ac4", "#e69f00": "#f2b632",
    "#56b4e9": "#9bd4f5",
    "#a9afb7": "#7d848d", "#858c95": "#9aa1aa", "#e69f01": "#f2b632", "#f0c75e": "#f5dc9a", "#0072b3": "#4aa8e0",
    "#009e74": "#2fc598", "#cc79a8": "#e39ac4", "#56b4ea": "#9bd4f5", "#dcdfe3": "#3d444d",
}  # fmt: skip

SHADE: Final = 0.35  # how strong a phase's colour is behind a curve

_DASHES: Final = ("-", "--", ":")

WIDTH_IN: Final = 8.0
LARGE: Final = 9.0
SMALL: Final = 8.0
_LINE_IN: Final = 0.17  # of a legend
_LINE_CHARACTERS: Final = 112  # that fit side by side in the width of a figure, at the small size
_HANDLE_CHARACTERS: Final = 6

# Fixed, so that the same records give the same bytes.
RC: Final[dict[Any, Any]] = {
    "svg.hashsalt": "ekd",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": LARGE,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlesize": LARGE,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "lines.linewidth": 1.4,
}


class Scale(NamedTuple):
    """A unit to draw in: values are divided by `of_si`."""

    of_si: float
    unit: str


_ENERGIES: Final = (Scale(1e9, "GJ"), Scale(1e6, "MJ"), Scale(1e3, "kJ"), Scale(1.0, "J"))
_TOKEN_ENERGIES: Final = (*_ENERGIES, Scale(1e-3, "mJ"))
_POWERS: Final = (Scale(1e6, "MW"), Scale(1e3, "kW"), Scale(1.0, "W"))
_TIMES: Final = (Scale(3600.0, "h"), Scale(60.0, "min"), Scale(1.0, "s"))


def energy_scale(largest_j: float, *, per_token: bool = False) -> Scale:
    """The unit in which the largest energy of a figure reads as 1 or more."""
    return _fitting(_TOKEN_ENERGIES if per_token else _ENERGIES, largest_j)


def power_scale(largest_w: float) -> Scale:
    """The same for power."""
    return _fitting(_POWERS, largest_w)


def time_scale(longest_s: float) -> Scale:
    """The unit in which the longest time reads as three or more."""
    return _fitting(_TIMES, longest_s / 3)


def _fitting(scales: Sequence[Scale], largest: float) -> Scale:
    return next((scale for scale in scales if largest >= scale.of_si), scales[-1])


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, by its place: a method has the same colour in every figure."""
    return {name: SERIES[place % len(SERIES)] for place, name in enumerate(names)}


def dashes_of(names: Iterable[str]) -> dict[str, str]:
    """A line style for each name, by its place: another one each time that the colours begin anew."""
    return {name: _DASHES[place // len(SERIES) % len(_DASHES)] for place, name in enumerate(names)}


def plot(height_in: float = 3.3) -> tuple[Figure, Any]:
    """A figure with one plot."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def rows_plot(rows: Sequence[str], bars: float = 1) -> tuple[Figure, Any]:
    """A figure with a named row for each entry, from the top down; its height follows their number."""
    figure, axes = plot(1.25 + (0.2 + 0.22 * bars) * len(rows))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return figure, axes


def panels(
    rows: int, columns: int = 1, height_in: float = 1.7, **options: Any
) -> tuple[Figure, list[Any]]:
    """A figure with a grid of plots, row by row."""
    figure = Figure(figsize=(WIDTH_IN, 0.7 + height_in * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def legend_above(figure: Figure, axes: Any, columns: int = 4) -> None:
    """The legend of one plot in lines above it, where it hides nothing."""
    _legend(figure, "outside upper left", columns, *axes.get_legend_handles_labels())


def phases_below(figure: Figure, phases: Iterable[str]) -> None:
    """A legend below the figure of the phases that are shaded in it, in their order."""
    named = [phase for phase in PHASES if phase in set(phases)]
    patches = [Patch(color=PHASE_COLOURS[phase], alpha=SHADE, lw=0) for phase in named]
    if patches:
        labels = [phase.replace("_", " ") for phase in named]
        _legend(figure, "outside lower left", 6, patches, labels)


def from_zero(axes: Any, top: float | None = None) -> None:
    """A vertical axis from 0 to a little above `top`, or above all that is drawn."""
    highest = axes.dataLim.y1 if top is None else top
    axes.set_ylim(0, 1.05 * highest if highest > 0 else 1)


def _legend(
    figure: Figure, place: Any, columns: int, handles: Sequence[Any], labels: Sequence[str]
) -> None:
    """A legend of as many columns as the labels leave room for; the figure grows with its lines."""
    if not handles:
        return
    room = int(_LINE_CHARACTERS // (max(map(len, labels)) + _HANDLE_CHARACTERS))
    count = max(1, min(columns, len(labels), room))
    lines = -(-len(labels) // count)
    figure.set_figheight(figure.get_figheight() + _LINE_IN * (lines - 1))
    figure.legend(
        handles,
        labels,
        loc=place,
        ncols=count,
        columnspacing=1.4,
        handlelength=1.6,
        borderaxespad=0.2,
    )


def name_phases(axes: Any, phases: Iterable[str]) -> None:
    """Entries of a legend for the colours of phases, in their order."""
    present = set(phases)
    for phase in PHASES:
        if phase in present:
            axes.barh([0], [0], color=PHASE_COLOURS[phase], label=phase.replace("_", " "))


def themed(svg: str) -> str:
    """The drawing with its colours as variables of the page; see `theme_css`."""
    for colour in DARK:
        svg = svg.replace(colour, f"var({variable(colour)})")
    return svg


def theme_css(*, dark: bool) -> str:
    """The variables of one theme."""
    return ";".join(
        f"{variable(light)}:{night if dark else light}" for light, night in DARK.items()
    )


def short(text: str, length: int) -> str:
    """A name with its middle left out, where there is no room for more."""
    if len(text) <= length:
        return text
    tail = length // 2
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"


def variable(colour: str) -> str:
    """The name under which a page knows a colour."""
    return f"--c{colour[1:]}"
