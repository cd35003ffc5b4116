"""What a report shows: the summary, and each run's power over time on one common grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from ekd_nemo.metrics.curve import Floats
from ekd_nemo.metrics.ledger import ledger_of_run
from ekd_nemo.metrics.profile import Profile, profile_of
from ekd_nemo.metrics.series import read_telemetry
from ekd_nemo.metrics.summary import MethodSummary, Summary, summarise

_BINS: Final = 300
_LEAST_BIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Content:
    """The summary, and the profiles of the runs that have one, by run id."""

    summary: Summary
    profiles: Mapping[str, Profile]

    def of_method(self, method: MethodSummary) -> list[Profile]:
        """The profiles of a method's runs."""
        return [self.profiles[run] for run in method.runs if run in self.profiles]


def gather(folders: Sequence[Path]) -> Content:
    """Read run directories, or folders of them.

    Raises: RunDirError where a folder holds no run; DataError on a broken record.
    """
    summary = summarise(folders)
    ledgers = {run.run_id: (run, ledger_of_run(run.records)) for run in summary.runs}
    longest = max((ledger.duration_s for _, ledger in ledgers.values()), default=0.0)
    bin_s = max(_LEAST_BIN_S, longest / _BINS)
    profiles: dict[str, Profile] = {}
    for run_id, (run, ledger) in ledgers.items():
        files = [*run.records.power_files(), *run.records.segment_files()]
        profile = profile_of(ledger, read_telemetry(files), bin_s)
        if profile is not None:
            profiles[run_id] = profile
    return Content(summary, profiles)


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """Mean and standard deviation over runs on a grid; NaN where no run has a value."""

    at_s: Floats
    mean: Floats
    deviation: Floats


def band_of(profiles: Sequence[Profile]) -> Band:
    """Power over time of several runs; where some runs have ended the others go on alone."""
    bins = max(len(profile.power_w) for profile in profiles)
    width_s = float(profiles[0].edges_s[1])
    table = np.full((len(profiles), bins), np.nan)
    for row, profile in zip(table, profiles, strict=True):
        row[: len(profile.power_w)] = profile.power_w
    known = ~np.isnan(table)
    count = known.sum(axis=0)
    some = np.maximum(count, 1)
    mean = np.where(known, table, 0.0).sum(axis=0) / some
    squares = np.where(known, (table - mean) ** 2, 0.0).sum(axis=0)
    deviation = np.sqrt(squares / np.maximum(count - 1, 1))
    empty = count == 0
    return Band(
        (np.arange(bins) + 0.5) * width_s,
        np.where(empty, np.nan, mean),
        np.where(empty, np.nan, deviation),
    )
