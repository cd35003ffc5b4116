"""The harnesses: how their files are named, read, and checked to be whole."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ekd_nemo.evals.harness_json import HarnessResult
from ekd_nemo.evals.light_json import LightResult
from ekd_nemo.evals.request import LIGHTEVAL, LM_EVAL
from ekd_nemo.evals.sidecar import Sidecar


@dataclass(frozen=True)
class Harness:
    """One harness.

    `prefix`: its files begin with it. `read`: opens a results file, given its settings.
    """

    name: str
    prefix: str
    read: Callable[[Path, Sidecar], HarnessResult]


def _read_lm(path: Path, settings: Sidecar) -> HarnessResult:
    return HarnessResult(path)  # the file holds everything


def _read_light(path: Path, settings: Sidecar) -> HarnessResult:
    return LightResult(path, settings.harness_version, settings.num_items)


LM = Harness(LM_EVAL, "lm", _read_lm)
LIGHT = Harness(LIGHTEVAL, "light", _read_light)
HARNESSES = (LM, LIGHT)
