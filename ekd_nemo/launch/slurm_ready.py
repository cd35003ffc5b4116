"""What the samplers of an attempt tell its ranks: the attempt's number, and which devices each node measures.

One small file beside the logs, written whole once every node samples; ranks and batch script wait for it.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ekd_nemo.errors import RunError
from ekd_nemo.launch.slurm_text import LOGS
from ekd_nemo.records.atomic import write_text
from ekd_nemo.records.rundir import RunDir

POLL_S: Final = 0.2
# For a node's sampler, or for a file that another node has written. A node's tasks begin once pyxis has unpacked the
# image there (slurm_spank_user_init, pyxis_slurmstepd.c), or fetched it: nodes may be minutes apart.
WAIT_S: Final = 600.0


def ready_file(run: RunDir, attempt: str) -> Path:
    """`ready-JOB-RESTARTS`: its first line is `ATTEMPT STEP`, the second the devices of each node as JSON."""
    return run.path / LOGS / f"ready-{attempt}"


def hung_file(run: RunDir, attempt: str) -> Path:
    """`hung-JOB-RESTARTS`: one line that names the rank."""
    return run.path / LOGS / f"hung-{attempt}"


def node_file(run: RunDir, attempt: str, node: str) -> Path:
    """What one node's sampler measures, until the first node has gathered it."""
    return run.path / LOGS / f"node-{attempt}-{node}"


def write_ready(path: Path, number: int, step: str, uuids: Mapping[str, list[str]]) -> None:
    """Tell everybody; see `ready_file`."""
    write_text(path, f"{number} {step}\n{json.dumps(uuids)}\n")


def read_ready(path: Path) -> tuple[int, dict[str, list[str]]]:
    """The attempt's number, and the devices of each node."""
    first, second = path.read_text().splitlines()
    return int(first.split()[0]), json.loads(second)


def wait_for(path: Path, what: str, wait_s: float = WAIT_S) -> None:
    """Wait until a file is there.

    Raises: RunError if it does not come.
    """
    give_up_s = time.monotonic() + wait_s
    while not path.is_file():
        if time.monotonic() > give_up_s:
            raise RunError(f"{what} did not come within {wait_s:.0f} s ({path})")
        time.sleep(POLL_S)
