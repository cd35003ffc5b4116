"""How a sampler samples, and its command line: `SamplerSettings` -> argv -> `SamplerSettings`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ekd_nemo.errors import UserError
from ekd_nemo.meter.choose import DCGM_URL, METER_NAMES, MeterSettings
from ekd_nemo.meter.estimate import DEFAULT_IDLE_FRACTION

PERIODS_MS: Final = range(10, 60_001)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerSettings:
    """How a sampler samples and for whom it lives.

    Attributes:
        until_pids: processes to follow, beside whoever sends marks.
        linger_s: how long after their end to go on.
        roll_mib: size at which the growing file is set aside and packed.
        ignores_sigterm: whether SIGTERM is meant for others: Slurm sends a preemption's to all processes of a job. Then
            SIGUSR2 ends it.
    """

    meters: MeterSettings = field(default_factory=MeterSettings)
    power_period_ms: int = 100
    counter_period_ms: int = 1000
    until_pids: Sequence[int] = ()
    linger_s: float = 10.0
    roll_mib: float = 64.0
    ignores_sigterm: bool = False

    def __post_init__(self) -> None:
        """Refuse periods that no meter serves."""
        for name in ("power_period_ms", "counter_period_ms"):
            if getattr(self, name) not in PERIODS_MS:
                raise UserError(f"{name} must be in 10..60000, got {getattr(self, name)}")
        if self.roll_mib <= 0:
            raise UserError(f"roll_mib must be above 0, got {self.roll_mib}")

    def argv(self) -> list[str]:
        """The options of the sampler process that say the same."""
        meters = self.meters
        options: list[tuple[str, object]] = [
            ("--meter", meters.meter),
            ("--node", meters.node),
            ("--dcgm-url", meters.dcgm_url),
            ("--cpu-tdp-w", meters.cpu_tdp_w),
            ("--cpu-idle-fraction", meters.cpu_idle_fraction),
            ("--replay-file", meters.replay_file and meters.replay_file.absolute()),
            ("--replay-speed", meters.replay_speed),
            ("--power-period-ms", self.power_period_ms),
            ("--counter-period-ms", self.counter_period_ms),
            ("--linger-s", self.linger_s),
            ("--roll-mib", self.roll_mib),
            *(("--uuid", uuid) for uuid in meters.uuids or ()),
            *(("--until-pid", pid) for pid in self.until_pids),
        ]
        flags = ["--ignore-sigterm"] if self.ignores_sigterm else []
        return [*(f"{name}={value}" for name, value in options if value is not None), *flags]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The sampler's command line."""
    parser = argparse.ArgumentParser(prog="ekd-sampler", description=description)
    parser.add_argument("--run", type=Path, required=True, help="the run directory")
    parser.add_argument("--node", help="this node's name (default: Slurm's, else the host's)")
    parser.add_argument("--meter", choices=METER_NAMES, default="auto")
    parser.add_argument("--uuid", action="append", help="a GPU to measure; may be repeated")
    parser.add_argument("--dcgm-url", default=DCGM_URL, help="a dcgm-exporter's page, for dcgm")
    parser.add_argument("--cpu-tdp-w", type=float, help="TDP of one package, for estimate")
    parser.add_argument("--cpu-idle-fraction", type=float, default=DEFAULT_IDLE_FRACTION)
    parser.add_argument("--replay-file", type=Path, help="a recorded power file, for replay")
    parser.add_argument("--replay-speed", type=float, default=1.0)
    parser.add_argument("--power-period-ms", type=int, default=100)
    parser.add_argument("--counter-period-ms", type=int, default=1000)
    parser.add_argument("--until-pid", type=int, action="append", default=[])
    parser.add_argument("--linger-s", type=float, default=10.0)
    parser.add_argument("--roll-mib", type=float, default=64.0)
    parser.add_argument("--ignore-sigterm", action="store_true", help="end by SIGUSR2 instead")
    return parser


def from_arguments(args: argparse.Namespace) -> SamplerSettings:
    """Settings from the parsed command line.

    Raises: UserError for values that no meter accepts.
    """
    return SamplerSettings(
        meters=MeterSettings(
            meter=args.meter,
            uuids=args.uuid,
            dcgm_url=args.dcgm_url,
            cpu_tdp_w=args.cpu_tdp_w,
            cpu_idle_fraction=args.cpu_idle_fraction,
            replay_file=args.replay_file,
            replay_speed=args.replay_speed,
            node=args.node,
        ),
        power_period_ms=args.power_period_ms,
        counter_period_ms=args.counter_period_ms,
        until_pids=args.until_pid,
        linger_s=args.linger_s,
        roll_mib=args.roll_mib,
        ignores_sigterm=args.ignore_sigterm,
    )
