"""What splitting teacher and student over two cores costs: split steps a second over those of the slower side alone.

Three things are timed, on the smoke pair, with one thread a process and every process pinned to a core:

- split: two ranks of `ekd_nemo.worker train`, the student's on the first core, the teacher's on the second;
- the teacher alone: its forward passes over the same batches, while a twin does the same on the other core;
- the student alone: its training with the teacher's outputs at hand, while a twin does the same on the other core.

The twins keep the other core and the memory as busy as the other side of a split run would.

    python tools/bench/split.py --steps 12

Needs `make quickstart` to have made teacher and shards.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ekd_nemo.config.resolve import recipe_text, resolve_recipe
from ekd_nemo.records.rundir import RunDir

FIRST = 3  # steps left out: the first ones make caches and allocate
ALONE = {"teacher.placement": "shared", "teacher.split": "null"}


def make_run(folder: Path, steps: int, changes: dict[str, str]) -> RunDir:
    """A run directory of `smoke_response_split`, without validation before its end."""
    settings = {
        "train.steps": steps,
        "train.val_interval": 100_000,
        "train.val_samples": 4,
        "train.checkpoint_interval": 100_000,
        "logging.tensorboard": "false",
    } | changes
    overrides = [f"{key}={value}" for key, value in settings.items()]
    folder.mkdir(parents=True)
    recipe = resolve_recipe("smoke_response_split", overrides).recipe
    (folder / "recipe.yaml").write_text(recipe_text(recipe))
    return RunDir(folder)


def start(core: int, argv: list[str], **variables: str) -> subprocess.Popen[bytes]:
    """A process on one core, with one thread for its arithmetic."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | variables
    with tempfile.NamedTemporaryFile(prefix="split-", suffix=".log", delete=False) as log:
        return subprocess.Popen(
            ["taskset", "-c", str(core), sys.executable, *argv], env=env, stdout=log, stderr=log
        )


def wait(*processes: subprocess.Popen[bytes]) -> None:
    """Until all have ended well."""
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"exit codes {codes}; see the logs split-*.log in {tempfile.gettempdir()}")


def step_s(run: RunDir) -> float:
    """Median seconds of a step."""
    lines = [json.loads(line) for line in run.train_log.read_text().splitlines()]
    return statistics.median([x["duration_s"] for x in lines if "duration_s" in x][FIRST:])


def split_s(folder: Path, steps: int, cores: list[int], port: int) -> float:
    """Seconds a step of the split run."""
    run = make_run(folder / "split", steps, {})
    world = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "bench",
        "GROUP_RANK": "0",
    }
    argv = ["-m", "ekd_nemo.worker", "train", "--run", str(run.path)]
    wait(
        *(
            start(core, argv, RANK=str(rank), LOCAL_RANK=str(rank), **world)
            for rank, core in enumerate(cores)
        )
    )
    return step_s(run)


def alone_s(side: str, folder: Path, steps: int, cores: list[int]) -> float:
    """Seconds a step of one side, the mean of the twins."""
    runs = [make_run(folder / f"{side}-{core}", steps, ALONE) for core in cores]
    argv = [str(Path(__file__)), "--as", side, "--run"]
    wait(*(start(core, [*argv, str(run.path)]) for core, run in zip(cores, runs, strict=True)))
    if side == "student":
        return statistics.mean(step_s(run) for run in runs)
    found = [json.loads((run.path / "passes.json").read_text()) for run in runs]
    return statistics.mean(statistics.median(times[FIRST:]) for times in found)


def teach(run: RunDir) -> None:
    """The teacher's passes of a training, with their messages encoded and sent to nobody."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state

    from ekd_nemo.backend import cpu
    from ekd_nemo.config.resolve import read_resolved
    from ekd_nemo.models.frozen import frozen_stage
    from ekd_nemo.models.passes import Passes
    from ekd_nemo.models.train import architectures
    from ekd_nemo.models.weights import FolderSource
    from ekd_nemo.teacher.layout import FINAL, Layout, Unit
    from ekd_nemo.teacher.transport import encode

    torch.set_num_threads(1)
    cpu.install(nemo=False)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel(1, 1)
    recipe, one = read_resolved(run.recipe_yaml), Layout(1, 1, 1)
    student, teacher = architectures(recipe)
    assert recipe.teacher is not None
    assert teacher is not None
    stage = frozen_stage(FolderSource(recipe.teacher.path), one, recipe.teacher.precision, 256)
    times: list[float] = []
    for each in Passes(recipe, student, teacher, one, torch.device("cpu")).after(0):
        began = time.monotonic()
        for index in range(each.num_microbatches):
            _, made = stage.forward(each.read(Unit(0, index)), None, [FINAL], None)
            encode(made[FINAL], "bf16")
        times.append(time.monotonic() - began)
    (run.path / "passes.json").write_text(json.dumps(times[: recipe.train.steps]))


def learn(run: RunDir) -> None:
    """The student's training with a teacher whose outputs are there already."""
    import torch

    from ekd_nemo.config.recipe import Recipe
    from ekd_nemo.models import train, training
    from ekd_nemo.models.frozen import head_rows
    from ekd_nemo.models.weights import FolderSource
    from ekd_nemo.teacher.layout import Layout, Place
    from ekd_nemo.teacher.source import TeacherOutputs

    def at_hand(recipe: Recipe, *_: Any) -> Any:
        assert recipe.teacher is not None
        source = FolderSource(recipe.teacher.path)
        head = head_rows(source, Layout(1, 1, 1), Place(0, 0, 0), "fp32")

        class AtHand:
            def outputs(self, batches: list[Any], needs: Any) -> TeacherOutputs:
                size, length = batches[0].tokens.shape
                return TeacherOutputs(
                    [torch.randn(length, size, head.shape[1])] * len(batches), head
                )

        return AtHand()

    torch.set_num_threads(1)
    training.teacher_source = at_hand
    train.main(["--run", str(run.path)])


def main() -> None:
    """Time all three, or be one of the processes that are timed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--port", type=int, default=29517)
    parser.add_argument("--as", dest="side", choices=("teacher", "student"))
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    if options.side:
        (teach if options.side == "teacher" else learn)(RunDir(options.run))
        return
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed")
    with tempfile.TemporaryDirectory() as folder:
        split = split_s(Path(folder), options.steps, cores, options.port)
        teacher = alone_s("teacher", Path(folder), options.steps, cores)
        student = alone_s("student", Path(folder), options.steps, cores)
    slower = max(teacher, student)
    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"load {load}, {options.steps} steps, median without the first {FIRST}")
    print(
        f"a step: split {split:.2f} s, teacher alone {teacher:.2f} s, student alone {student:.2f} s"
    )
    print(f"split throughput / min(teacher alone, student alone): {slower / split:.3f}")


if __name__ == "__main__":
    main()
