"""Begin and end marks of one rank become stretches of the innermost phase."""

from collections.abc import Sequence
from typing import Final

from ekd_nemo.records.phases import PHASES, Phase

PHASE_NUMBER: Final[dict[Phase, int]] = {phase: number for number, phase in enumerate(PHASES)}
IDLE: Final = PHASE_NUMBER["idle"]


class PhaseStack:
    """The open phases of one rank at a moment, and the stretches that they have left so far.

    Phases are given by their index in `PHASES`.

    Attributes:
        rows: start and end in ns and the phase of each stretch, in order of time.
        open_phases: outermost first.
    """

    def __init__(self, flags: set[str]) -> None:
        """Begin with nothing open; what is odd about the marks is added to `flags`."""
        self.rows: list[tuple[int, int, int]] = []
        self.open_phases: list[int] = []
        self._since_ns = 0
        self._flags = flags

    def pass_moment(self, at_ns: int, begun: Sequence[int], ended: Sequence[int]) -> None:
        """Take the marks of one moment, in whatever order they came.

        A phase that both begins and ends in it changes nothing; the other ends come first.
        """
        self._advance(at_ns)
        opening, closing = list(begun), list(ended)
        for phase in [phase for phase in opening if phase in closing]:
            opening.remove(phase)
            closing.remove(phase)
        while self.open_phases and self.open_phases[-1] in closing:
            closing.remove(self.open_phases.pop())
        for phase in closing:
            self._close(phase)
        self.open_phases.extend(opening)

    def abandon(self, at_ns: int) -> None:
        """End everything that a killed process left open."""
        self._flags.add("unclosed_attempt")
        self._advance(max(self._since_ns, at_ns))
        self.open_phases.clear()

    def _advance(self, at_ns: int) -> None:
        if self.open_phases and at_ns > self._since_ns:
            self.rows.append((self._since_ns, at_ns, self.open_phases[-1]))
        self._since_ns = at_ns

    def _close(self, phase: int) -> None:
        """End a phase that is not innermost: inner ones end with it, one that is not open is passed over."""
        self._flags.add("unbalanced_marks")
        if phase in self.open_phases:
            while self.open_phases.pop() != phase:
                pass
