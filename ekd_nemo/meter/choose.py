"""Which meters a machine has, and why these were taken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from ekd_nemo.errors import UserError
from ekd_nemo.meter.estimate import DEFAULT_IDLE_FRACTION, EstimateMeter
from ekd_nemo.meter.hwmon import HwmonMeter
from ekd_nemo.meter.nvml import NvmlMeter
from ekd_nemo.meter.protocol import Meter, MeterUnavailableError
from ekd_nemo.meter.rapl import RaplMeter
from ekd_nemo.meter.replay import ReplayMeter
from ekd_nemo.records.lines import Role

DCGM_URL: Final = "http://127.0.0.1:9400/metrics"  # where a dcgm-exporter shows its page by default
M = TypeVar("M", bound=Meter)
METER_NAMES: Final = ("auto", "nvml", "dcgm", "rapl", "hwmon", "estimate", "host", "replay")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterSettings:
    """What to measure with.

    Attributes:
        meter: `auto`, the one meter to take, or `host`: the processors alone, and not as accelerators, for work that
            holds no GPU.
        uuids: GPUs to measure; None: all that the process may use.
        dcgm_url: the page of a dcgm-exporter, for `dcgm` where DCGM's bindings are not installed.
        cpu_tdp_w: TDP of one processor package, for `estimate`; None: its stated default.
        cpu_idle_fraction: share of the TDP drawn when nothing runs, for `estimate`.
        replay_file: the recorded file, for `replay`.
        replay_speed: recorded seconds in one second, for `replay`.
        node: this node's name; None: as records name it.
    """

    meter: str = "auto"
    uuids: Sequence[str] | None = None
    dcgm_url: str = DCGM_URL
    cpu_tdp_w: float | None = None
    cpu_idle_fraction: float = DEFAULT_IDLE_FRACTION
    replay_file: Path | None = None
    replay_speed: float = 1.0
    node: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no meter accepts."""
        if self.meter not in METER_NAMES:
            raise UserError(f"meter '{self.meter}' is unknown; one of {', '.join(METER_NAMES)}")
        if (self.meter == "replay") != (self.replay_file is not None):
            raise UserError("meter replay and replay_file go together: give both or neither")
        if self.cpu_tdp_w is not None and self.cpu_tdp_w <= 0:
            raise UserError(f"cpu_tdp_w must be above 0 W, got {self.cpu_tdp_w}")
        if not 0 <= self.cpu_idle_fraction <= 1:
            raise UserError(f"cpu_idle_fraction must be in 0..1, got {self.cpu_idle_fraction}")


@dataclass(frozen=True, slots=True)
class OpenMeters:
    """The meters taken, and why, in words for the record."""

    meters: Sequence[Meter]
    why: str


def open_meters(settings: MeterSettings) -> OpenMeters:
    """Open what the settings ask for.

    `auto` takes NVML, and beside it the processors as host devices where RAPL or a Grace's hwmon
    can be read; without GPUs the processors by RAPL, else hwmon, else the estimate, as `host` does as
    well. DCGM is only taken when asked for: whether an exporter runs, and how often it looks, is the
    site's business.
    Raises: MeterUnavailableError if a meter asked for by name is not there; UserError for settings
        that no meter accepts.
    """
    if settings.meter == "auto":
        return _open_auto(settings)
    if settings.meter == "host":
        return _open_host(settings)
    return OpenMeters([_open_one(settings)], f"{settings.meter} was asked for")


def _open_one(settings: MeterSettings) -> Meter:
    """The meter that was asked for by name."""
    makers: dict[str, Callable[[], Meter]] = {
        "nvml": lambda: NvmlMeter(uuids=settings.uuids),
        "dcgm": lambda: _dcgm(settings),
        "rapl": lambda: RaplMeter(node=settings.node),
        "hwmon": lambda: HwmonMeter(node=settings.node),
        "estimate": lambda: _estimate(settings),
        "replay": lambda: _replay(settings),
    }
    return makers[settings.meter]()


def _open_auto(settings: MeterSettings) -> OpenMeters:
    why: list[str] = []
    nvml = _try(lambda: NvmlMeter(uuids=settings.uuids), why)
    if nvml is None and settings.uuids:
        raise MeterUnavailableError(f"GPUs were asked for by UUID, but {why[0]}")
    role: Role = "accelerator" if nvml is None else "host"
    host = _processors(settings, role, why)
    meters: list[Meter] = [meter for meter in (nvml, host) if meter is not None]
    if not meters:
        meters.append(_estimate(settings))
    taken = " and ".join(meter.name for meter in meters)
    return OpenMeters(meters, "; ".join([*why, f"auto took {taken}"]))


def _open_host(settings: MeterSettings) -> OpenMeters:
    why: list[str] = []
    host = _processors(settings, "host", why) or _estimate(settings, "host")
    return OpenMeters([host], "; ".join([*why, f"host took {host.name}"]))


def _processors(settings: MeterSettings, role: Role, why: list[str]) -> Meter | None:
    """The processors as measured; None, and the reasons noted, where they are not."""
    rapl = _try(lambda: RaplMeter(role=role, node=settings.node), why)
    return rapl or _try(lambda: HwmonMeter(role=role, node=settings.node), why)


def _estimate(settings: MeterSettings, role: Role = "accelerator") -> EstimateMeter:
    return EstimateMeter(
        tdp_w=settings.cpu_tdp_w,
        idle_fraction=settings.cpu_idle_fraction,
        role=role,
        node=settings.node,
    )


def _dcgm(settings: MeterSettings) -> Meter:
    """DCGM's own bindings where they are installed and a host engine answers, else an exporter's page."""
    from ekd_nemo.meter.dcgm import DcgmMeter  # HTTP and a parser that no other sampler needs
    from ekd_nemo.meter.dcgm_bindings import DcgmBindingsMeter

    try:
        return DcgmBindingsMeter(uuids=settings.uuids)
    except MeterUnavailableError as error:
        reason = str(error).removeprefix("dcgm: ")
    try:
        return DcgmMeter(url=settings.dcgm_url, uuids=settings.uuids, node=settings.node)
    except MeterUnavailableError as error:
        raise MeterUnavailableError(f"{error}; {reason}") from None


def _replay(settings: MeterSettings) -> ReplayMeter:
    assert settings.replay_file is not None
    return ReplayMeter(settings.replay_file, speed=settings.replay_speed)


def _try(make: Callable[[], M], why: list[str]) -> M | None:
    """The meter, or None and the reason noted."""
    try:
        return make()
    except MeterUnavailableError as error:
        why.append(str(error))
        return None
