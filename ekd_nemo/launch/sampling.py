"""The sampler beside a launch: started before the first step of a run, stopped after the last."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from ekd_nemo.config.recipe import Energy
from ekd_nemo.meter.choose import MeterSettings
from ekd_nemo.records.identity import set_devices
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.process import Sampler
from ekd_nemo.telemetry.settings import SamplerSettings

_OF_GPUS: Final = ("auto", "nvml", "dcgm")


def sampler_of(
    run: RunDir, energy: Energy, *, ignores_sigterm: bool = False, host_only: bool = False
) -> Sampler:
    """The sampler that a recipe asks for; not started.

    Args:
        run: the run directory.
        energy: how to meter.
        ignores_sigterm: whether it lives on when all processes around it are asked to end.
        host_only: whether what is metered holds no GPU where the recipe's runs do: the processors are metered, as host,
            unless the recipe takes them for the accelerators everywhere.
    Raises: UserError for periods that no meter serves.
    """
    settings = SamplerSettings(
        meters=MeterSettings(
            meter="host" if host_only and energy.meter in _OF_GPUS else energy.meter,
            cpu_tdp_w=energy.cpu_tdp_w,
        ),
        power_period_ms=energy.power_period_ms,
        counter_period_ms=energy.counter_period_ms,
        ignores_sigterm=ignores_sigterm,
    )
    return Sampler(run, settings)


@contextmanager
def sampling(run: RunDir, energy: Energy) -> Generator[tuple[str, ...]]:
    """Keep a sampler running around a block, and note its devices in run.json.

    Yields: the ids of the accelerators that it measures.
    Raises: UserError or RunError with what the sampler said if it does not start.
    """
    with sampler_of(run, energy) as sampler:
        set_devices(run, sampler.identities())
        yield tuple(sampler.uuids())
