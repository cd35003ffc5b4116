"""A plan as text and as plain data."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ekd_nemo.config.cluster import Cluster
from ekd_nemo.planner.alternatives import Alternative
from ekd_nemo.planner.assumptions import Assumptions
from ekd_nemo.planner.calibration import Calibration
from ekd_nemo.planner.estimate import Estimate
from ekd_nemo.planner.memory import GIB

NOT_COUNTED = (
    "validation, checkpoints, evaluation and the energy of hosts and network are not counted"
)


def plan_data(
    cluster: Cluster, rows: Sequence[Alternative], a: Assumptions, calibration: Calibration
) -> dict[str, Any]:
    """The plan as JSON takes it; units are in the names."""
    return {
        "cluster": cluster.name,
        "device": cluster.nodes.device.model_dump(mode="json"),
        "source": "estimated",
        "not_counted": NOT_COUNTED,
        "calibration": asdict(calibration),
        "assumptions": a.table(),
        "alternatives": [_row_data(row, cluster) for row in rows],
    }


def _row_data(row: Alternative, cluster: Cluster) -> dict[str, Any]:
    data: dict[str, Any] = {"label": row.label, "chosen": row.chosen, "reason": row.reason or None}
    found = row.found
    if found is None:
        return data | {"fits": False}
    return data | {
        "fits": found.fits,
        "reason": misfit(found) or None,
        "ranks": found.scenario.ranks,
        "teacher_ranks": _teacher_ranks(found),
        "memory_gib": {
            who: {part: size / GIB for part, size in asdict(memory).items()}
            | {"total": memory.total / GIB}
            for who, memory in found.memory.items()
        },
        "step_s": found.step_s,
        "step_parts_s": asdict(found.time),
        "tokens_per_step": found.scenario.tokens,
        "flop_per_token": found.flops_per_token,
        "tokens_per_s": found.tokens_per_s,
        "tokens_per_s_device": found.tokens_per_s_device,
        "mfu": found.mfu,
        "days": found.days,
        "device_hours": found.days * 24 * found.scenario.ranks,
        "energy_kwh": found.energy_kwh,
        "energy_kwh_with_pue": _with_pue(found.energy_kwh, cluster),
        "cache": None if found.cache is None else asdict(found.cache),
    }


def _teacher_ranks(found: Estimate) -> int | None:
    teacher = found.scenario.teacher
    return None if teacher is None else teacher.layout.ranks


def _with_pue(energy_kwh: float, cluster: Cluster) -> float | None:
    return None if cluster.power.pue is None else energy_kwh * cluster.power.pue.value


def misfit(found: Estimate) -> str:
    """Why an estimate cannot be run, and what would help; empty where it fits."""
    if found.fits:
        return ""
    who, memory = max(found.memory.items(), key=lambda item: item[1].total)
    parts = sorted(asdict(memory).items(), key=lambda part: -part[1])
    biggest = ", ".join(f"{_words(name)} {size / GIB:.1f}" for name, size in parts[:3])
    return (
        f"a {who} device needs {memory.total / GIB:.1f} GiB and has {found.available_gib:.1f}: "
        f"{found.missing_gib:.1f} GiB too much (most: {biggest} GiB)"
    )


def plan_text(
    cluster: Cluster, rows: Sequence[Alternative], a: Assumptions, calibration: Calibration
) -> str:
    """The plan for people: the recipe's own scenario in parts, the alternatives as a table, the assumptions."""
    lines: list[str] = []
    own = rows[0]
    if own.found is not None:
        lines += _own_lines(own.found, cluster)
    else:
        lines += [f"{own.label}: {own.reason}"]
    lines += ["", "alternatives (estimated, every figure a forecast)", *_table(rows)]
    lines += [f"  {row.label}: {why}" for row in rows[1:] if (why := _why(row))]
    lines += ["", *_assumption_lines(a, calibration)]
    return "\n".join(lines)


def _why(row: Alternative) -> str:
    return row.reason if row.found is None else misfit(row.found)


def _own_lines(found: Estimate, cluster: Cluster) -> list[str]:
    work, device = found.scenario.student, cluster.nodes.device
    layout = work.layout
    lines = [
        f"{found.scenario.recipe.name} on {found.scenario.ranks} x {device.name} ({cluster.name})",
        f"  student: tensor {layout.tensor}, pipeline {layout.pipeline}, data {layout.data}, {work.precision}, "
        f"{work.trained} training, {work.microbatches} microbatches of {work.micro_batch}",
    ]
    teacher = found.scenario.teacher
    if teacher is not None:
        cut = teacher.layout
        lines.append(
            f"  teacher: {found.scenario.placement}, tensor {cut.tensor}, pipeline {cut.pipeline}, data {cut.data}, "
            f"{teacher.precision}"
        )
    for who, memory in found.memory.items():
        lines += ["", f"memory of a {who} device, GiB of {found.available_gib:.1f}"]
        lines += _parts(
            {name: size / GIB for name, size in asdict(memory).items()}, memory.total / GIB
        )
    lines += ["", "time of a step, s", *_parts(asdict(found.time), found.step_s)]
    if why := misfit(found):
        lines += ["", f"refused: {why}"]
    return lines


def _parts(parts: dict[str, float], total: float) -> list[str]:
    lines = [
        f"  {_words(name):<18}{value:>9.2f}  {100 * value / total:>4.0f} %"
        for name, value in parts.items()
        if value
    ]
    return [*lines, f"  {'total':<18}{total:>9.2f}"]


def _words(name: str) -> str:
    return name.replace("_", " ")


HEAD = ("", "GiB", "step s", "tokens/s", "per device", "MFU", "days", "kWh", "device-h", "cache")


def _table(rows: Sequence[Alternative]) -> list[str]:
    cells = [HEAD, *(_cells(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    lines: list[str] = []
    for row in cells:
        first, *rest = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return lines


def _cells(row: Alternative) -> tuple[str, ...]:
    label = f"{'*' if row.chosen else ' '} {row.label}"
    found = row.found
    if found is None:
        return (label, "n/a", *[""] * (len(HEAD) - 2))
    fullest = max(memory.total for memory in found.memory.values()) / GIB
    cache = found.cache
    made = "" if cache is None else f"{_short(cache.energy_kwh)} kWh once, {cache.size_tb:.2g} TB"
    return (
        label,
        f"{fullest:.1f}{'' if found.fits else '!'}",
        f"{found.step_s:.2f}",
        f"{found.tokens_per_s:,.0f}",
        f"{found.tokens_per_s_device:,.0f}",
        f"{100 * found.mfu:.1f} %",
        _short(found.days),
        _short(found.energy_kwh),
        _short(found.days * 24 * found.scenario.ranks),
        made,
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _assumption_lines(a: Assumptions, calibration: Calibration) -> list[str]:
    lines = [
        f"calibration: {calibration.sentence()}",
        *([f"  {memory}"] if (memory := calibration.memory_sentence()) else []),
        f"not counted: {NOT_COUNTED}",
        "assumptions:",
    ]
    return lines + [
        f"  {name:<20}{'n/a' if value is None else value}" for name, value in a.table().items()
    ]
