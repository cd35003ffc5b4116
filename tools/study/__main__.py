"""Run a plan of the study and write its table; the same call again goes on where it stopped.

    python -m tools.study full          # make study
    python -m tools.study slice         # make study-slice
    python -m tools.study full --dry-run

Runs lie in runs/study/PLAN; the records of what is finished are written to tools/study/records, the table to
tools/study/RESULTS.md and the page of figures to tools/study/report-PLAN.html. Needs the teacher
(`python tools/make_teacher.py`) and a CPU; no GPU, account or hub.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from ekd_nemo.errors import EXIT_SAVED, EkdError
from tools.study.commands import KINDS, Command, Study
from tools.study.plan import read_plan

ROOT = Path(__file__).parents[2]
# The smoke recipes are for the CPU, and .venv has no Transformer Engine.
ON_THE_CPU = {"CUDA_VISIBLE_DEVICES": ""}


class Stop:
    """Notes SIGTERM and SIGINT: the command at work saves what it has, and none is started after it."""

    def __init__(self) -> None:
        """Take both signals from now on; main thread only."""
        self.asked = False
        self.process: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.process is not None and number == signal.SIGTERM:  # Ctrl-C reaches it by itself
            self.process.send_signal(signal.SIGTERM)

    def run(self, argv: tuple[str, ...]) -> int:
        """Run a command to its end and return its exit code."""
        with subprocess.Popen(argv, cwd=ROOT, env={**os.environ, **ON_THE_CPU}) as process:
            self.process = process
            try:
                return process.wait()
            finally:
                self.process = None


def main(argv: list[str] | None = None) -> int:
    """Run what is missing; 0 when all is done, 75 when stopped before the end, else the failed command's code."""
    options = _options(argv)
    os.chdir(ROOT)
    try:
        methods, plan = read_plan(options.plan)
    except EkdError as error:
        say(f"error: {error}")
        return error.exit_code
    study = Study(methods, plan, Path("runs/study") / options.plan, options.task_data)
    code = _work(study, options)
    if options.dry_run:
        return code
    from tools.study.records import write_records
    from tools.study.table import write_table

    write_records(options.plan, study)
    write_table()
    say(f"study: {options.plan}: records and tools/study/RESULTS.md are written")
    page = study.report(Path(f"tools/study/report-{options.plan}.html"))
    return code if page.done else Stop().run(page.argv) or code


def _work(study: Study, options: argparse.Namespace) -> int:
    """Every command that is not done, one at a time."""
    stop, began_s = Stop(), time.monotonic()
    for name, command in study.all_commands():
        if command.done or options.only not in (None, command.what):
            continue
        late = options.minutes is not None and time.monotonic() - began_s > options.minutes * 60
        if late or stop.asked:
            return EXIT_SAVED
        if code := _do(name, command, stop, options.dry_run):
            return code
    return 0


def _do(name: str, command: Command, stop: Stop, dry_run: bool) -> int:
    if dry_run:
        say(shlex.join(command.argv))
        return 0
    say(f"== {name}: {command.what}")
    began_s = time.monotonic()
    code = stop.run(command.argv)
    if code:
        say(f"study: {name}: {command.what} ended with exit code {code}; the same call goes on")
        return code if code > 0 else 128 - code
    say(f"== {name}: {command.what}: {time.monotonic() - began_s:.0f} s")
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.study", description=__doc__)
    parser.add_argument("plan", help="a plan of tools/study/plans.yaml")
    parser.add_argument("--task-data", type=Path, help="a folder of bbh/*.json and gsm8k/*.jsonl")
    parser.add_argument("--minutes", type=float, help="start nothing after so many minutes")
    parser.add_argument("--only", choices=KINDS, help="do commands of this kind alone")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, do nothing")
    return parser.parse_args(argv)


def say(line: str) -> None:
    """Print a line before the next command's output."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
