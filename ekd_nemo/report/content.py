"""What a report shows: the summary, and what each run did over time on one common grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ekd_nemo.metrics.ledger import ledger_of_run
from ekd_nemo.metrics.profile import Profile, profile_of
from ekd_nemo.metrics.series import read_telemetry
from ekd_nemo.metrics.states import States, states_of
from ekd_nemo.metrics.summary import MethodSummary, Summary, summarise

_BINS: Final = 300
_LEAST_BIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Content:
    """The summary, and the profiles and states of the runs that have them, by run id."""

    summary: Summary
    profiles: Mapping[str, Profile]
    states: Mapping[str, States]

    def of_method(self, method: MethodSummary) -> list[Profile]:
        """The profiles of a method's runs."""
        return [self.profiles[run] for run in method.runs if run in self.profiles]

    @property
    def drawn_methods(self) -> list[MethodSummary]:
        """Methods of which at least one run has a profile."""
        return [method for method in self.summary.methods if self.of_method(method)]

    @property
    def longest_s(self) -> float:
        """The end of the longest profile; 0 without any."""
        return max((float(p.edges_s[-1]) for p in self.profiles.values()), default=0.0)


def gather(folders: Sequence[Path]) -> Content:
    """Read run directories, or folders of them.

    Raises: RunDirError where a folder holds no run; DataError on a broken record.
    """
    summary = summarise(folders)
    ledgers = {run.run_id: (run, ledger_of_run(run.records)) for run in summary.runs}
    longest = max((ledger.duration_s for _, ledger in ledgers.values()), default=0.0)
    bin_s = max(_LEAST_BIN_S, longest / _BINS)
    profiles: dict[str, Profile] = {}
    states: dict[str, States] = {}
    for run_id, (run, ledger) in ledgers.items():
        files = [*run.records.power_files(), *run.records.segment_files()]
        profile = profile_of(ledger, read_telemetry(files), bin_s)
        if profile is not None:
            profiles[run_id] = profile
            states[run_id] = states_of(ledger, files, profile.edges_s)
    return Content(summary, profiles, states)
