"""`ekd doctor`: what this machine can run, and what it would measure. Imports nothing heavy."""

import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

import ekd_nemo
from ekd_nemo.cli.common import table

CONTAINER_VARIABLES: Final = (
    "NVIDIA_PYTORCH_VERSION",
    "NEMO_VERSION",
    "CUDA_VERSION",
    "APPTAINER_CONTAINER",
    "ENROOT_ROOTFS",
)
TOOLS: Final = ("git", "sbatch", "srun", "enroot", "nvidia-smi", "docker")
FIRST_READ_S: Final = 0.2


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Write one JSON object.")] = False,
) -> None:
    """Say what this machine can run and what it would measure."""
    facts = survey()
    if json:
        import json as json_module

        typer.echo(json_module.dumps(facts, indent=2))
        return
    for title, section in facts.items():
        typer.echo(f"{title}")
        typer.echo(_indented(table(_rows(section))) + "\n")


def survey() -> dict[str, Any]:
    """Everything that `ekd doctor` tells, by section."""
    from ekd_nemo.records.capture import PACKAGES, package_versions

    versions = package_versions()
    devices = _devices()
    return {
        "in short": _in_short(devices),
        "machine": _machine(),
        "container": _container(),
        "tools": {tool: shutil.which(tool) or "not found" for tool in TOOLS},
        "packages": {name: versions.get(name, "not installed") for name in PACKAGES},
        "meters": _meters(),
        "what `auto` would measure": devices,
    }


def _in_short(devices: Sequence[dict[str, str]]) -> dict[str, str]:
    """What the rest means for somebody who wants to run something here."""
    gpus = [d for d in devices if d["device"].startswith("GPU-")]
    boards = [d for d in devices if d["role"] == "accelerator"]
    measured = all(d["source"] == "measured" for d in boards)
    slurm = shutil.which("sbatch") is not None
    return {
        "training": f"on {_plural(len(gpus), 'GPU')}"
        if gpus
        else "on the CPU: the smoke recipes (`make quickstart`); the others need GPUs",
        "energy": f"measured, by {', '.join(sorted({d['meter'] for d in boards}))}"
        if measured
        else "an estimate from utilisation and an assumed TDP, not a measurement: NVML or RAPL would measure",
        "cluster": "Slurm is here" if slurm else "no Slurm here: `ekd recipe launch NAME --local`",
    }


def _plural(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _machine() -> dict[str, str]:
    import psutil

    from ekd_nemo.records.clock import boot_id, node_name

    memory_gib = psutil.virtual_memory().total / 2**30
    return {
        "ekd": ekd_nemo.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "node": f"{node_name()} (boot {boot_id()})",
        "processor": _processor_name(),
        "logical CPUs": str(os.cpu_count()),
        "memory": f"{memory_gib:.1f} GiB",
    }


def _processor_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _container() -> dict[str, str]:
    """Signs of a container, and the versions that NVIDIA's images tell."""
    signs = [
        path
        for path in ("/.dockerenv", "/run/.containerenv", "/.singularity.d")
        if Path(path).exists()
    ]
    facts = {"inside one": ", ".join(signs) or "no sign of it"}
    facts.update({name: os.environ[name] for name in CONTAINER_VARIABLES if name in os.environ})
    return facts


def _meters() -> dict[str, str]:
    """Each meter of this machine: what it covers, or why it is not there."""
    from ekd_nemo.meter.choose import MeterSettings, open_meters
    from ekd_nemo.meter.protocol import MeterUnavailableError

    found: dict[str, str] = {}
    for name in ("nvml", "dcgm", "rapl", "hwmon", "estimate"):
        try:
            (meter,) = open_meters(MeterSettings(meter=name)).meters
        except MeterUnavailableError as error:
            found[name] = "no: " + str(error).removeprefix(f"{name}: ")
            continue
        found[name] = f"yes: {_plural(len(meter.devices), 'device')}, {meter.source}"
        meter.close()
    return found


def _devices() -> list[dict[str, str]]:
    """What `auto` takes, with a first reading."""
    from ekd_nemo.meter.choose import MeterSettings, open_meters
    from ekd_nemo.meter.protocol import PowerReading

    opened = open_meters(MeterSettings())
    time.sleep(FIRST_READ_S)  # some meters tell the mean since the read before
    rows: list[dict[str, str]] = []
    for meter in opened.meters:
        now_mw = {
            reading.uuid: reading.p_avg_mw if reading.p_avg_mw is not None else reading.p_inst_mw
            for reading in meter.read_power()
            if isinstance(reading, PowerReading)
        }
        for device in meter.devices:
            power_mw = now_mw.get(device.uuid)
            rows.append(
                {
                    "device": device.uuid,
                    "name": device.name,
                    "role": device.role,
                    "meter": meter.name,
                    "source": meter.source,
                    "now": "n/a" if power_mw is None else f"{power_mw / 1000:.1f} W",
                    "uncertainty": _percent(device.uncertainty_pct),
                    "covers": device.covers,
                }
            )
        meter.close()
    return rows


def _percent(value: float | None) -> str:
    return "not known" if value is None else f"{value:g} %"


def _rows(section: dict[str, str] | list[dict[str, str]]) -> Sequence[Sequence[str]]:
    if isinstance(section, dict):
        return [[key, value] for key, value in section.items()]
    return [list(section[0]), *(list(row.values()) for row in section)]


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
