"""Prometheus metrics of the runs under a folder, read from their files: no part of any run.

A value that has not been renewed for ten seconds is not exported, rather than repeated.
"""

import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ekd_nemo.errors import UserError
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.live import LiveDevice, LiveRun, power_w
from ekd_nemo.units import NS_PER_S

DEFAULT_PORT: Final = 9477
STALE_S: Final = 10.0
FORGET_S: Final = 600.0

DEVICE_LABELS: Final = ("run", "node", "uuid", "meter", "source", "role")
STATES: Final = (
    ("ekd_utilisation_percent", "util_pct", "Utilisation"),
    ("ekd_memory_used_bytes", "memory_used_bytes", "Device memory in use"),
    ("ekd_temperature_celsius", "temperature_c", "Temperature"),
    ("ekd_clock_sm_mhz", "clock_sm_mhz", "Clock of the multiprocessors"),
)


class RunsCollector(Collector):
    """Reads the runs anew at each scrape.

    Args:
        folder: a run directory, or a folder of them.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read until the first scrape."""
        self._folder = folder
        self._live: dict[Path, LiveRun] = {}
        self._lock = threading.Lock()  # scrapes may overlap

    def collect(self) -> Iterable[Metric]:
        """All metrics of the runs that have written in the last ten minutes."""
        with self._lock:
            self._find_runs()
            runs = list(self._live.values())
            for run in runs:
                run.refresh()
            return [*_device_metrics(runs), *_rank_metrics(runs), *_run_metrics(runs)]

    def _find_runs(self) -> None:
        oldest_s = time.time() - FORGET_S
        folders = {file.parent.parent for file in self._files() if _written_s(file) >= oldest_s}
        self._live = {
            path: self._live.get(path) or LiveRun(RunDir(path)) for path in sorted(folders)
        }

    def _files(self) -> Iterable[Path]:
        for pattern in ("telemetry/*.jsonl", "*/telemetry/*.jsonl"):
            yield from self._folder.glob(pattern)


def _written_s(file: Path) -> float:
    """When a file was last written to, since the epoch; 0 if it has been packed since it was listed."""
    try:
        return file.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _is_fresh(t_wall_ns: int) -> bool:
    return time.time() - t_wall_ns / NS_PER_S < STALE_S


def _labels(run: LiveRun, device: LiveDevice) -> list[str]:
    return [run.run.run_id, device.node, device.uuid, device.meter, device.source, device.role]


def _device_metrics(runs: Iterable[LiveRun]) -> list[Metric]:
    power = GaugeMetricFamily("ekd_power_watts", "Power", labels=DEVICE_LABELS)
    energy = CounterMetricFamily(
        "ekd_energy_joules",
        "The device's energy counter, from its own origin",
        labels=DEVICE_LABELS,
    )
    shares = CounterMetricFamily(
        "ekd_phase_energy_joules",
        "Energy by rank and phase since the exporter began to follow; for views, not for claims",
        labels=("run", "node", "uuid", "rank", "phase"),
    )
    age = GaugeMetricFamily("ekd_sample_age_seconds", "Since the last sample", labels=DEVICE_LABELS)
    states = [GaugeMetricFamily(name, text, labels=DEVICE_LABELS) for name, _, text in STATES]
    for run in runs:
        for device in run.devices.values():
            labels = _labels(run, device)
            if device.power is not None:
                watts = power_w(device.power)
                if watts is not None and _is_fresh(device.power.t_wall_ns):
                    power.add_metric(labels, watts)
                age.add_metric(labels, time.time() - device.power.t_wall_ns / NS_PER_S)
            if device.energy_j is not None:
                energy.add_metric(labels, device.energy_j)
            for (rank, phase), energy_j in device.phase_energy_j.items():
                shares.add_metric([*labels[:3], rank, phase], energy_j)
            _add_states(states, labels, device)
    return [power, energy, shares, age, *states]


def _add_states(
    families: Iterable[GaugeMetricFamily], labels: list[str], device: LiveDevice
) -> None:
    if device.state is None or not _is_fresh(device.state.t_wall_ns):
        return
    for family, (_, name, _) in zip(families, STATES, strict=True):
        value = getattr(device.state, name)
        if value is not None:
            family.add_metric(labels, value)


def _rank_metrics(runs: Iterable[LiveRun]) -> list[Metric]:
    labels = ("run", "node", "rank")
    phase = GaugeMetricFamily(
        "ekd_rank_phase",
        "1 for the phase that a rank is in, once for each device that it occupies",
        labels=(*labels, "uuid", "phase"),
    )
    step = GaugeMetricFamily("ekd_step", "Last finished step", labels=labels)
    tokens = CounterMetricFamily(
        "ekd_tokens", "Tokens of the rank's replica since the exporter began", labels=labels
    )
    for run in runs:
        for rank in run.working():
            values = [run.run.run_id, rank.node, str(rank.rank)]
            for uuid in rank.uuids or ("",):
                phase.add_metric([*values, uuid, rank.phase], 1)
            if rank.step is not None:
                step.add_metric(values, rank.step)
        for rank in run.replicas():
            tokens.add_metric([run.run.run_id, rank.node, str(rank.rank)], rank.tokens)
    return [phase, step, tokens]


def _run_metrics(runs: Iterable[LiveRun]) -> list[Metric]:
    rate = GaugeMetricFamily(
        "ekd_tokens_per_second", "Of the last minute, all replicas", labels=("run",)
    )
    per_token = GaugeMetricFamily(
        "ekd_energy_per_token_joules", "Accelerators, of the last minute", labels=("run",)
    )
    for run in runs:
        rates = run.rates()
        if rates is not None and _is_fresh(run.newest_ns):
            rate.add_metric([run.run.run_id], rates[0])
            per_token.add_metric([run.run.run_id], rates[1])
    return [rate, per_token]


@contextmanager
def serving(folder: Path, *, host: str, port: int) -> Generator[int]:
    """Serve the metrics of the runs under `folder` while the block runs.

    Yields: the port; of use when 0 asked for any free one.
    Raises: UserError if the address cannot be listened on or the folder is not there.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such directory; expected a run directory or a folder of them"
        )
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunsCollector(folder))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
