"""Runs a function on several gloo ranks, each a spawned process of its own.

The ranks meet through a file, not a port, so that any number of tests may run at once.
"""

import faulthandler
import multiprocessing
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# After one rank has failed, the others get this long to fail by themselves before they are killed.
GRACE_S = 5.0


class RanksError(AssertionError):
    """A rank failed or ran past the time limit; the message holds what each of them said."""


def run_ranks(
    fn: Callable[..., Any],
    world_size: int,
    tmp_path: Path,
    *args: Any,
    timeout_s: float = 120.0,
    context: BaseContext | None = None,
) -> list[Any]:
    """Call `fn(rank, world_size, *args)` on every rank and give back what each returned.

    Args:
        fn: a function at module level (it is pickled by name), called with the default process
            group up.
        world_size: number of ranks.
        tmp_path: a folder for the meeting file, logs and results; each call makes its own inside.
        args: picklable, passed on to every rank.
        timeout_s: limit for all ranks together; a rank that hangs shows its stack in the error.
        context: how processes start; None: spawned. `tests.forkserver` has NeMo imported already.

    Returns:
        The results by rank: tensors, numbers, strings and containers of them.

    Raises:
        RanksError: a rank raised, died or hung.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"ranks-{world_size}-", dir=tmp_path))
    context = context or multiprocessing.get_context("spawn")
    ranks: list[BaseProcess] = [
        context.Process(target=_rank, args=(fn, rank, world_size, folder, timeout_s, args))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        _wait(ranks, timeout_s)
    finally:
        late = [rank for rank, process in enumerate(ranks) if process.is_alive()]
        for process in ranks:
            process.kill()
            process.join()
    if late or any(process.exitcode for process in ranks):
        raise RanksError(_account(fn, ranks, late, timeout_s, folder))
    results = [torch.load(folder / f"result-{r}.pt", weights_only=True) for r in range(world_size)]
    shutil.rmtree(folder)
    return results


def _wait(ranks: list[BaseProcess], timeout_s: float) -> None:
    """Return when all ranks have ended, at the limit, or soon after one has failed."""
    deadline = time.monotonic() + timeout_s
    failed = False
    while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
        if not failed and any(process.exitcode for process in ranks):
            failed = True
            deadline = min(deadline, time.monotonic() + GRACE_S)
        time.sleep(0.01)


def _account(
    fn: Callable[..., Any],
    ranks: list[BaseProcess],
    late: list[int],
    timeout_s: float,
    folder: Path,
) -> str:
    name = getattr(fn, "__name__", repr(fn))
    lines = [f"{name} on {len(ranks)} ranks (limit {timeout_s:g} s, files in {folder})"]
    for rank, process in enumerate(ranks):
        if rank in late:
            lines.append(f"-- rank {rank}: killed, it had not ended")
        else:
            lines.append(f"-- rank {rank}: exit code {process.exitcode}")
        log = folder / f"rank-{rank}.log"
        if log.exists() and log.stat().st_size:
            lines.append(log.read_text().rstrip())
    return "\n".join(lines)


def _rank(
    fn: Callable[..., Any],
    rank: int,
    world_size: int,
    folder: Path,
    timeout_s: float,
    args: tuple[Any, ...],
) -> None:
    with (folder / f"rank-{rank}.log").open("w") as log:
        faulthandler.dump_traceback_later(max(timeout_s - 2.0, 0.5 * timeout_s), file=log)
        try:
            torch.set_num_threads(1)
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
            dist.init_process_group(
                "gloo",
                store=dist.FileStore(str(folder / "store"), world_size),
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=timeout_s),
            )
            torch.save(fn(rank, world_size, *args), folder / f"result-{rank}.pt")
            dist.destroy_process_group()
        except BaseException:
            traceback.print_exc(file=log)
            log.flush()
            os._exit(1)
        finally:
            faulthandler.cancel_dump_traceback_later()
