"""Units: the only conversions between what devices report and what people read.

Records hold integers in the device's unit (mJ, mW, ns), named in the field (`e_mj`, `p_avg_mw`, `t_mono_ns`).
Everything computed is a float in SI (J, W, s). Conversions happen at those two edges only.
"""

from typing import Final

MJ_PER_J: Final = 1_000  # millijoules, as NVML counts them
MW_PER_W: Final = 1_000  # milliwatts
UJ_PER_MJ: Final = 1_000  # microjoules, as RAPL counts them
NS_PER_S: Final = 1_000_000_000
J_PER_KWH: Final = 3_600_000


def joules(energy_mj: float) -> float:
    """Energy in J from millijoules."""
    return energy_mj / MJ_PER_J


def watts(power_mw: float) -> float:
    """Power in W from milliwatts."""
    return power_mw / MW_PER_W


def seconds(duration_ns: float) -> float:
    """Duration in s from nanoseconds."""
    return duration_ns / NS_PER_S


def kilowatt_hours(energy_j: float) -> float:
    """Energy in kWh from joules."""
    return energy_j / J_PER_KWH


_ENERGY_STEPS: Final = ((1e9, "GJ"), (1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"))


def format_energy(energy_j: float) -> str:
    """Energy with four significant digits and a fitting unit, the smallest mJ: `12.34 kJ`, `0.05 mJ`, `0 J`."""
    if energy_j == 0:
        return "0 J"
    scale, unit = next((s for s in _ENERGY_STEPS if abs(energy_j) >= s[0]), _ENERGY_STEPS[-1])
    return f"{energy_j / scale:.4g} {unit}"
