"""NVIDIA GPUs through a dcgm-exporter that already runs on the node: its Prometheus page, by field.

Units: the exporter's W and mJ, MiB and degrees Celsius. Clock: CLOCK_MONOTONIC when the page was read;
the exporter renews its values each 30 s unless told otherwise, and a page without news gives nothing.
Counter source: field 156, mJ since the driver was loaded.
Covers: the whole board; on Grace-Hopper the module. MIG: only the board's figures are taken.
A Grace processor, where the exporter shows it (DCGM's CPU entity, field 1130), is a host device beside them.
Not covered: fields that the exporter's configuration leaves out; the DCGM bindings (dcgm_bindings.py); nodes without
a GPU; the parts of a socket beside the processor (hwmon tells a Grace socket whole).
Source: NVIDIA/dcgm-exporter, internal/pkg/rendermetrics; NVIDIA/DCGM, dcgm_fields.h and the names of dcgm_fields.py.
"""

import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Final
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from ekd_nemo.meter.cpu import package_uuid
from ekd_nemo.meter.nvml import UNCERTAINTY_PCT, visible_uuids
from ekd_nemo.meter.protocol import (
    CounterReading,
    Device,
    Fault,
    MeterUnavailableError,
    PowerReading,
    StateReading,
)
from ekd_nemo.records.clock import Instant, node_name, now
from ekd_nemo.records.lines import Source
from ekd_nemo.units import MW_PER_W

TIMEOUT_S: Final = 2.0
PAGE_LIMIT_BYTES: Final = 16 << 20
SCRAPE_PERIOD_S: Final = 1.0
MIB: Final = 1 << 20

# field numbers of DCGM, and the names under which exporters have shown them
POWER: Final = ("DCGM_FI_DEV_POWER_USAGE",)  # 155
ENERGY: Final = ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",)  # 156
INSTANT: Final = ("DCGM_FI_DEV_POWER_USAGE_INSTANT",)  # 157
UTIL: Final = ("DCGM_FI_DEV_GPU_UTIL",)
MEMORY_USED: Final = ("DCGM_FI_DEV_FB_USED",)
TEMPERATURE: Final = ("DCGM_FI_DEV_GPU_TEMP",)
SM_CLOCK: Final = ("DCGM_FI_DEV_SM_CLOCK",)
MEMORY_CLOCK: Final = ("DCGM_FI_DEV_MEM_CLOCK",)

# of the CPU entity, which the page tells by cpu="N" instead of a UUID; the second names are those of newer DCGM
CPU_POWER: Final = ("DCGM_FI_DEV_CPU_POWER_UTIL_CURRENT", "DCGM_FI_DEV_CPU_POWER_WATTS")  # 1130
CPU_LIMIT: Final = ("DCGM_FI_DEV_CPU_POWER_LIMIT", "DCGM_FI_DEV_CPU_POWER_LIMIT_WATTS")  # 1131
CPU_UTIL: Final = ("DCGM_FI_DEV_CPU_UTIL_TOTAL",)  # 1100, of 1
CPU_TEMPERATURE: Final = ("DCGM_FI_DEV_CPU_TEMP_CURRENT", "DCGM_FI_DEV_CPU_TEMP_CELSIUS")  # 1110


@dataclass(frozen=True, slots=True)
class _Page:
    """One scrape: values by device and field name, and each GPU's product name."""

    at: Instant
    values: Mapping[str, Mapping[str, float]]
    names: Mapping[str, str]
    is_mig: frozenset[str]

    def value(self, uuid: str, names: Sequence[str]) -> float | None:
        found = self.values.get(uuid, {})
        return next((found[name] for name in names if name in found), None)

    def whole(self, uuid: str, names: Sequence[str], factor: int = 1) -> int | None:
        value = self.value(uuid, names)
        return None if value is None else round(value * factor)


class DcgmMeter:
    """The GPUs that an exporter shows.

    Args:
        url: the exporter's page; http or https.
        uuids: GPUs to read; None: those in CUDA_VISIBLE_DEVICES if it holds UUIDs, else all shown.
        node: this node's name, of which processors are named; None: as records name it.
    Raises: MeterUnavailableError if the page cannot be read, shows no GPU with power, or lacks one of `uuids`.
    """

    name: str = "dcgm"
    source: Source = "measured"
    exhausted: bool = False

    def __init__(
        self, *, url: str, uuids: Sequence[str] | None = None, node: str | None = None
    ) -> None:
        """Read the page once."""
        if urlsplit(url).scheme not in ("http", "https"):
            raise MeterUnavailableError(f"dcgm: {url}: an http or https address is needed")
        self._url, self._node = url, node or node_name()
        self._scraped_s = time.monotonic()
        try:
            self._page = self._scrape()
        except (OSError, HTTPException, ValueError) as error:
            raise MeterUnavailableError(f"dcgm: {url}: {error}") from None
        wanted = visible_uuids() if uuids is None else uuids
        shown = [
            uuid for uuid in self._page.values if self._page.value(uuid, POWER + ENERGY) is not None
        ]
        self._uuids = [uuid for uuid in shown if wanted is None or uuid in wanted]
        missing = sorted(set(wanted or ()) - set(shown))
        if missing or not self._uuids:
            what = f"GPU {missing[0]}" if missing else "any GPU"
            raise MeterUnavailableError(f"dcgm: {url} does not show the power of {what}")
        self._cpus = [
            uuid for uuid in self._page.values if self._page.value(uuid, CPU_POWER) is not None
        ]
        self._counted: dict[str, int] = {}
        self._told: dict[str, tuple[float | None, ...]] = {}

    @property
    def devices(self) -> Sequence[Device]:
        """The GPUs, then the processors."""
        gpus = [
            Device(
                uuid=uuid,
                name=self._page.names.get(uuid, "NVIDIA GPU"),
                device_kind="gpu",
                role="accelerator",
                covers="the whole board",
                exclusive=True,
                p_avg_window_ms=1000,
                uncertainty_pct=UNCERTAINTY_PCT,
                mig=uuid in self._page.is_mig,
                parameters={"exporter": self._url},
            )
            for uuid in self._uuids
        ]
        return [*gpus, *(self._cpu(uuid) for uuid in self._cpus)]

    def _cpu(self, uuid: str) -> Device:
        return Device(
            uuid=uuid,
            name="NVIDIA Grace",
            device_kind="cpu",
            role="host",
            covers="one processor as DCGM field 1130 tells it, all processes",
            power_limit_mw=self._page.whole(uuid, CPU_LIMIT, MW_PER_W),
            parameters={"exporter": self._url},
        )

    def read_power(self) -> Sequence[PowerReading | Fault]:
        """Power of the devices for which the exporter has something new."""
        faults = self._renew()
        page, readings = self._page, list[PowerReading | Fault](faults)
        for uuid in self._uuids:
            told = (page.value(uuid, POWER + INSTANT), page.value(uuid, ENERGY))
            average_mw = page.whole(uuid, POWER, MW_PER_W)
            instant_mw = page.whole(uuid, INSTANT, MW_PER_W)
            if told == self._told.get(uuid) or (average_mw is None and instant_mw is None):
                continue
            self._told[uuid] = told
            readings.append(PowerReading(uuid, page.at, average_mw, instant_mw))
        for uuid in self._cpus:
            power_mw = page.whole(uuid, CPU_POWER, MW_PER_W)
            facts = (CPU_POWER, CPU_UTIL, CPU_TEMPERATURE)  # any of them tells that time has passed
            told = tuple(page.value(uuid, fact) for fact in facts)
            if power_mw is not None and told != self._told.get(uuid):
                self._told[uuid] = told
                readings.append(PowerReading(uuid, page.at, power_mw))
        return readings

    def read_counters(self) -> Sequence[CounterReading | Fault]:
        """Energy since the driver was loaded, where the exporter has something new."""
        readings: list[CounterReading | Fault] = list(self._renew())
        for uuid in self._uuids:
            e_mj = self._page.whole(uuid, ENERGY)
            if e_mj is not None and e_mj != self._counted.get(uuid):
                self._counted[uuid] = e_mj
                readings.append(CounterReading(uuid, self._page.at, e_mj))
        return readings

    def read_state(self) -> Sequence[StateReading | Fault]:
        """Utilisation, memory, temperature and clocks of the last page."""
        page = self._page
        gpus = [
            StateReading(
                uuid=uuid,
                at=page.at,
                util_pct=page.whole(uuid, UTIL),
                memory_used_bytes=page.whole(uuid, MEMORY_USED, MIB),
                temperature_c=page.whole(uuid, TEMPERATURE),
                clock_sm_mhz=page.whole(uuid, SM_CLOCK),
                clock_memory_mhz=page.whole(uuid, MEMORY_CLOCK),
            )
            for uuid in self._uuids
        ]
        cpus = [
            StateReading(
                uuid=uuid,
                at=page.at,
                util_pct=page.whole(uuid, CPU_UTIL, 100),
                temperature_c=page.whole(uuid, CPU_TEMPERATURE),
            )
            for uuid in self._cpus
        ]
        return [*gpus, *cpus]

    def close(self) -> None:
        """Nothing is held."""

    def _renew(self) -> list[Fault]:
        """Read the page again, at most once a second; the fault if that fails."""
        if time.monotonic() - self._scraped_s < SCRAPE_PERIOD_S:
            return []
        self._scraped_s = time.monotonic()
        try:
            self._page = self._scrape()
        except (OSError, HTTPException, ValueError) as error:
            return [Fault(None, now(), "read_error", f"{self._url}: {error}")]
        return []

    def _scrape(self) -> _Page:
        with urllib.request.urlopen(self._url, timeout=TIMEOUT_S) as answer:
            text = answer.read(PAGE_LIMIT_BYTES).decode()
        return _parse(text, now(), self._node)


def _parse(text: str, at: Instant, node: str) -> _Page:
    """The page's samples of whole boards, by UUID, and of whole processors, by the ids that `node` gives them.

    Raises: ValueError if it is not in Prometheus' text format.
    """
    values: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}
    mig: set[str] = set()
    for name, labels, value in _samples(text):
        uuid = labels.get("UUID")
        if uuid is None and "cpu" in labels and "cpucore" not in labels:
            uuid = package_uuid(node, labels["cpu"])
        if uuid is None or not 0 <= value < float("inf"):
            continue
        if labels.get("GPU_I_ID"):
            mig.add(uuid)  # power and energy of an instance are the board's, told once an instance
        values.setdefault(uuid, {}).setdefault(name, value)
        names.setdefault(uuid, labels.get("modelName", "NVIDIA GPU"))
    return _Page(at, values, names, frozenset(mig))


def _samples(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name.removesuffix("_total"), sample.labels, sample.value
