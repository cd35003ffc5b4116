"""A rank that only marks steps, five a second. It may stop dead at one, as a hung rank does; told to save, it takes two
seconds for it and ends with 75, and the next attempt has five steps left to do.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from ekd_nemo.errors import EXIT_SAVED
from ekd_nemo.launch.slurm_env import read_task
from ekd_nemo.launch.slurm_rank import note_process, rank_environment
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.marks import Marks

SAVING_S = 2.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--stops", type=int, default=-1)
    arguments = parser.parse_args()
    run, task = RunDir(arguments.run), read_task(os.environ)
    environment = rank_environment(run, task, os.environ)
    note_process(run, task, os.getpid())
    attempt = int(environment["EKD_ATTEMPT"])
    uuids = environment["EKD_DEVICE_UUIDS"].split(",")
    marks = Marks(
        run.marks(task.rank),
        rank=task.rank,
        uuids=uuids,
        parallel={"data": task.rank},
        attempt=attempt,
    )
    saved = run.path / f"saved-{task.rank}"
    first = int(saved.read_text()) + 1 if saved.is_file() else 1
    last = first + 4 if saved.is_file() else arguments.steps
    asked: list[int] = []
    for each in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(each, lambda number, frame: asked.append(number))
    with marks, marks.phase("student_train"):
        for step in range(first, last + 1):
            if step == 5 and task.rank == arguments.stops:
                os.kill(os.getpid(), signal.SIGSTOP)
            marks.step(step=step, tokens=1)
            time.sleep(0.2)
            if asked:
                time.sleep(SAVING_S)
                saved.write_text(str(step))
                sys.exit(EXIT_SAVED)
            while task.rank != arguments.stops and step == 6 and arguments.stops >= 0:
                time.sleep(1)  # waits for the other, as a collective does


if __name__ == "__main__":
    main()
