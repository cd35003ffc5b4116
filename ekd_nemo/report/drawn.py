"""What drawing gives: a figure, or the reason why there is nothing to draw."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from ekd_nemo.report.content import Content


@dataclass(frozen=True, slots=True)
class Absent:
    """No figure, for what was not measured is not drawn as 0."""

    reason: str


Draw = Callable[[Content], Figure | Absent]


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure of a report.

    Attributes:
        name: of its files and its place on the page.
        caption: what is drawn and how, in a line or two.
        draw: gives the figure, or the reason why there is none.
    """

    name: str
    title: str
    caption: str
    draw: Draw
