"""Names of processor packages, the same whichever meter reads them."""

from pathlib import Path
from typing import Final

CPU_TOPOLOGY: Final = Path("/sys/devices/system/cpu")


def package_uuid(node: str, package: int | str) -> str:
    """Id of one processor package of a node."""
    return f"CPU-{node}-package-{package}"


def dram_uuid(node: str, package: int | str) -> str:
    """Id of the memory behind one processor package of a node."""
    return f"DRAM-{node}-package-{package}"


def packages(topology: Path = CPU_TOPOLOGY) -> dict[int, list[int]]:
    """Logical CPUs of each physical package, packages numbered from 0 in the kernel's order.

    One package with no CPU listed where the kernel does not tell (some virtual machines).
    """
    found: dict[int, list[int]] = {}
    for file in topology.glob("cpu[0-9]*/topology/physical_package_id"):
        cpu = int(file.parent.parent.name.removeprefix("cpu"))
        found.setdefault(int(file.read_text()), []).append(cpu)
    if not found:
        return {0: []}
    return {number: sorted(found[key]) for number, key in enumerate(sorted(found))}


def package_uuids(node: str) -> list[str]:
    """Ids of all processor packages of this machine, which is called `node`."""
    return [package_uuid(node, number) for number in packages()]
