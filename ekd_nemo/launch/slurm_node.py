"""The step beside the ranks, one task a node: meters the node, and ends the job when a rank hangs.

`srun --overlap --ntasks-per-node=1 python -m ekd_nemo.launch.slurm_node --run DIR --silent-s S`. Its first task
counts the attempt in run.json, waits until every node samples, and says so to the ranks (`slurm_ready`). Being a step
of its own it outlives the ranks, so that their last joules are measured: told to end (SIGTERM), by the batch script or
by a preemption, which tells the ranks as well, it does so once the ranks of its node have ended.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import read_resolved
from ekd_nemo.errors import EXIT_OK, EXIT_SAVED, EkdError, RunError
from ekd_nemo.launch.sampling import sampler_of
from ekd_nemo.launch.silence import (
    NOT_STARTED,
    SilenceWatch,
    Silent,
    has_ended,
    process_state,
    silent_ranks,
    verdict,
)
from ekd_nemo.launch.slurm_env import Task, read_task
from ekd_nemo.launch.slurm_rank import rank_file
from ekd_nemo.launch.slurm_ready import (
    hung_file,
    node_file,
    ready_file,
    wait_for,
    write_ready,
)
from ekd_nemo.launch.slurm_run import begin, note_if_trained
from ekd_nemo.launch.slurm_text import EXIT_HUNG, LOGS
from ekd_nemo.records.atomic import write_text
from ekd_nemo.records.clock import node_name
from ekd_nemo.records.identity import DeviceIdentity, set_devices
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.process import Sampler

LOOK_S: Final = 2.0
LAST_LOOK_S: Final = 0.5  # between looks at ranks that are about to end
# For all other nodes to say how their processes are: on NFS a file that was not there may stay so for a minute
# (acdirmax, man nfs), once for the question and once for the answer.
ANSWER_S: Final = 150.0


class NodeStep:
    """What one task of the step does.

    Args:
        run: the run directory.
        recipe: of the run.
        task: this task; one a node.
        ranks: training ranks on all nodes.
        silent_s: how long nothing may happen before the job is ended.
    """

    def __init__(
        self, run: RunDir, recipe: Recipe, task: Task, ranks: int, silent_s: float
    ) -> None:
        """Nothing is started yet; SIGTERM ends it, SIGUSR1 (the time limit's, meant for the ranks) does nothing.

        An ignored signal stays ignored in the sampler's process. A rank that is this process' child gets both.
        """
        self._run, self._recipe, self._task = run, recipe, task
        self._ranks, self._silent_s = ranks, silent_s
        self._ended = threading.Event()
        self._prepares = True  # until all nodes sample
        self._child: subprocess.Popen[bytes] | None = None
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        """Told to end; before there is anything to wait for, at once: the ranks never begin."""
        self._ended.set()
        if self._prepares:
            raise SystemExit(EXIT_SAVED)
        self._hand_on(number, frame)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on to the rank: by default proctrack/cgroup signals tasks and not their children.

        Source: proctrack_p_signal, src/plugins/proctrack/cgroup/proctrack_cgroup.c; SignalChildrenProcesses, man
        cgroup.conf.
        """
        if self._child is not None:
            self._child.send_signal(number)

    def __call__(self, start: Callable[[], subprocess.Popen[bytes]] | None = None) -> int:
        """Sample until told to end; EXIT_HUNG, with the rank named, when the run has hung.

        Args:
            start: starts the rank that this process watches over, where there is no step beside the ranks; the rank's
                end is then the end, and its exit code the result.
        """
        leads = self._task.node_index == 0
        number = begin(self._run, self._recipe, self._ranks) if leads else 0
        with sampler_of(self._run, self._recipe.energy, ignores_sigterm=True) as sampler:
            self._tell_devices(sampler)
            ready = ready_file(self._run, self._task.attempt)
            if leads:
                self._gather(number, ready)
            wait_for(ready, "the first node's word that all nodes sample")
            self._prepares = False
            if start:
                self._watch_over(start())
            code = self._lead(number) if leads else self._follow()
        if leads:
            note_if_trained(self._run, self._recipe, number)
        self._clear(leads)
        return code

    def _watch_over(self, child: subprocess.Popen[bytes]) -> None:
        """Take on the rank of this task; one that was told to end while it started is told now."""
        self._child = child
        signal.signal(signal.SIGUSR1, self._hand_on)
        if self._ended.is_set():
            child.terminate()

    def _tell_devices(self, sampler: Sampler) -> None:
        devices = [device.model_dump() for device in sampler.identities()]
        body = {"uuids": sampler.uuids(), "devices": devices}
        (self._run.path / LOGS).mkdir(parents=True, exist_ok=True)
        write_text(self._node_file(node_name()), json.dumps(body) + "\n")

    def _node_file(self, node: str) -> Path:
        return node_file(self._run, self._task.attempt, node)

    def _gather(self, number: int, ready: Path) -> None:
        """Wait for all nodes' devices, note them in run.json, and let the ranks begin."""
        uuids: dict[str, list[str]] = {}
        devices: list[DeviceIdentity] = []
        for node in self._task.nodes:
            path = self._node_file(node)
            wait_for(path, f"the sampler of {node}")
            body = json.loads(path.read_text())
            uuids[node] = body["uuids"]
            devices += [DeviceIdentity.model_validate(each) for each in body["devices"]]
        set_devices(self._run, devices)
        write_ready(ready, number, self._task.step, uuids)

    def _lead(self, number: int) -> int:
        """Watch the marks of all ranks."""
        watch = SilenceWatch(self._run, self._ranks, self._silent_s)
        while self._goes_on():
            if watch.is_silent():
                line = verdict(self._culprits(number), watch.silence_s())
                write_text(hung_file(self._run, self._task.attempt), f"error: {line}\n")
                sys.stderr.write(f"error: {line}\n")
                self._result()
                return EXIT_HUNG
        return self._result()

    def _goes_on(self) -> bool:
        """Wait for the next look; False once this step was told to end and its ranks have ended.

        Ranks that were told to end as well save first, and are waited for.
        """
        if self._child is None:
            if not self._ended.wait(LOOK_S):
                return True
            time.sleep(LAST_LOOK_S)
            return not all(has_ended(state) for state in self._states().values())
        try:
            self._child.wait(LOOK_S)
        except subprocess.TimeoutExpired:
            return True
        return False

    def _result(self) -> int:
        """The rank's exit code, where this process has one; a rank that hangs is ended."""
        if self._child is None:
            return EXIT_OK
        if self._child.poll() is None:
            self._child.kill()
            self._child.wait()
        code = self._child.returncode
        return code if code >= 0 else 128 - code

    def _culprits(self, number: int) -> list[Silent]:
        """Ask all nodes for the states of their processes, then sort the ranks."""
        write_text(self._ask_file(), "\n")
        self._answer()
        states: dict[int, str] = {}
        give_up_s = time.monotonic() + ANSWER_S
        for node in self._task.nodes:
            path = self._answer_file(node)
            try:
                wait_for(path, f"an answer of {node}", max(0.0, give_up_s - time.monotonic()))
            except RunError:
                continue  # a node that does not answer: its ranks stay unknown
            states |= {int(rank): state for rank, state in json.loads(path.read_text()).items()}
        local = self._ranks // len(self._task.nodes)
        nodes = {rank: self._task.nodes[rank // local] for rank in range(self._ranks)}
        return silent_ranks(self._run, nodes, states, number)

    def _follow(self) -> int:
        """Wait for the end; answer when the first node asks how the processes are, end when it has named a rank."""
        while self._goes_on() and not hung_file(self._run, self._task.attempt).is_file():
            if self._ask_file().is_file() and not self._answer_file(node_name()).is_file():
                self._answer()
        return self._result()

    def _answer(self) -> None:
        states = {str(rank): state for rank, state in self._states().items()}
        write_text(self._answer_file(node_name()), json.dumps(states) + "\n")

    def _own_ranks(self) -> range:
        """Ranks of this node."""
        local = self._ranks // len(self._task.nodes)
        first = self._task.node_index * local
        return range(first, first + local)

    def _states(self) -> dict[int, str]:
        """How the processes of this node's ranks are."""
        states: dict[int, str] = {}
        for rank in self._own_ranks():
            path = rank_file(self._run, self._task.attempt, rank)
            states[rank] = NOT_STARTED
            if path.is_file():
                states[rank] = process_state(int(json.loads(path.read_text())["pid"]))
        return states

    def _ask_file(self) -> Path:
        return self._run.path / LOGS / f"ask-{self._task.attempt}"

    def _answer_file(self, node: str) -> Path:
        return self._run.path / LOGS / f"answer-{self._task.attempt}-{node}"

    def _clear(self, leads: bool) -> None:
        """Remove what only the attempt itself needed."""
        names = [
            f"node-{self._task.attempt}-{node_name()}",
            f"answer-{self._task.attempt}-{node_name()}",
            *(f"rank-{self._task.attempt}-{rank}" for rank in self._own_ranks()),
        ]
        if leads:
            names.append(f"ask-{self._task.attempt}")
        for name in names:
            (self._run.path / LOGS / name).unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Sample and watch; one line on stderr and an exit code when that fails."""
    parser = argparse.ArgumentParser(prog="ekd-slurm-node", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run directory")
    parser.add_argument("--ranks", type=int, required=True, help="training ranks on all nodes")
    parser.add_argument("--silent-s", type=float, required=True, help="how long nothing may happen")
    arguments = parser.parse_args(argv)
    run = RunDir(arguments.run)
    try:
        recipe = read_resolved(run.recipe_yaml)
        task = read_task(os.environ)
        return NodeStep(run, recipe, task, arguments.ranks, arguments.silent_s)()
    except EkdError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
