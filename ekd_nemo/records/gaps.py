"""What a gap between samples is, for everything that reads records."""

from typing import Final

import numpy as np
import numpy.typing as npt

from ekd_nemo.units import NS_PER_S

GAP_FLOOR_S: Final = 2.0
GAP_PERIODS: Final = 3.0


def gap_threshold_s(knots_ns: npt.NDArray[np.int64]) -> float:
    """The interval above which two neighbouring samples have a gap between them, in s.

    It is max(2 s, 3 median periods).

    Args:
        knots_ns: [N] strictly increasing times; with fewer than two there is no period and the
            floor holds.
    """
    if len(knots_ns) < 2:
        return GAP_FLOOR_S
    return max(GAP_FLOOR_S, GAP_PERIODS * float(np.median(np.diff(knots_ns))) / NS_PER_S)
