"""What `logs/train.jsonl` says of one run: losses, held-out figures and tokens by step."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ekd_nemo.metrics.quantity import Quantity
from ekd_nemo.metrics.tokens import newest_attempts
from ekd_nemo.records.jsonl import ReadReport, read_objects

Line = Mapping[str, Any]

_LARGEST = 1e300  # also bounds integers that no float holds


@dataclass(frozen=True, slots=True)
class Training:
    """The end of the loss curve, of the runs of steps that are in the weights.

    Attributes:
        steps: distinct steps logged.
        last_step: number of the last one.
        loss, ce: of the last step; `loss` is the recipe's objective, so it compares only within a method.
        val_ce: held-out cross-entropy in nats per token, of the last validation.
        val_kl: held-out KL(teacher || student) in nats per token.
        tokens, tokens_valid: non-padding and loss-carrying tokens of the logged steps.
    """

    steps: Quantity
    last_step: Quantity
    loss: Quantity
    ce: Quantity
    val_ce: Quantity
    val_kl: Quantity
    tokens: Quantity
    tokens_valid: Quantity


def read_training(path: Path) -> Training:
    """The training log of a run; an absent or empty one gives missing figures with the reason."""
    report = ReadReport()
    lines = list(read_objects(path, report)) if path.is_file() else []
    why = "logs/train.jsonl holds no training step" if path.is_file() else "no logs/train.jsonl"
    flags = tuple(
        flag for flag, count in (("torn_lines", report.torn), ("bad_lines", report.bad)) if count
    )
    return training_of(lines, why, flags)


def training_of(lines: Iterable[Line], why: str, flags: tuple[str, ...] = ()) -> Training:
    """The figures of logged lines in any order.

    Args:
        lines: decoded lines; those without an integer `step` are passed over.
        why: the reason to give where no step was logged.
        flags: put on every figure.
    """
    known = [line for line in lines if _is_count(line.get("step"))]
    steps = _kept([line for line in known if _is_number(line.get("loss"))])
    validations = _kept([line for line in known if "val_ce" in line or "val_kl_to_teacher" in line])
    nothing: Line = {}
    last = steps[-1] if steps else nothing
    held_out = validations[-1] if validations else nothing
    why_held_out = "no validation was logged" if steps else why
    return Training(
        Quantity(len(steps), "steps", flags=flags)
        if steps
        else Quantity.missing("steps", why, flags),
        _figure(last, "step", "", why, flags),
        _figure(last, "loss", "", why, flags),
        _figure(last, "ce", "nats/token", why if not steps else "ce was not logged", flags),
        _figure(held_out, "val_ce", "nats/token", why_held_out, flags),
        _figure(
            held_out, "val_kl_to_teacher", "nats/token", _why_no_kl(held_out, why_held_out), flags
        ),
        _sum(steps, "tokens", why, flags),
        _sum(steps, "tokens_valid", why, flags),
    )


def _kept(lines: list[Line]) -> list[Line]:
    """One line a step, of the run that is in the weights, by step; of repeated lines the later one."""
    runs: dict[int, dict[int, Line]] = {}
    for line in lines:
        attempt = line.get("attempt", 1)
        runs.setdefault(line["step"], {})[attempt if _is_count(attempt) else 1] = line
    return [runs[step][attempt] for step, attempt in newest_attempts(runs).items()]


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _figure(line: Line, key: str, unit: str, why: str, flags: tuple[str, ...]) -> Quantity:
    value = line.get(key)
    if value is None or not _is_number(value):
        return Quantity.missing(unit, why, flags)
    if not -_LARGEST < value < _LARGEST:
        return Quantity.missing(unit, f"{key} is not finite at step {line.get('step')}", flags)
    return Quantity(value, unit, flags=flags)


def _why_no_kl(held_out: Line, why: str) -> str:
    return "the run had no teacher to compare with" if held_out else why


def _sum(lines: list[Line], key: str, why: str, flags: tuple[str, ...]) -> Quantity:
    counts = [line.get(key) for line in lines]
    known = [count for count in counts if isinstance(count, int) and _is_count(count)]
    if not lines:
        return Quantity.missing("tokens", why, flags)
    if len(known) < len(counts):
        return Quantity.missing(
            "tokens", f"{len(counts) - len(known)} logged steps lack {key}", flags
        )
    return Quantity(sum(known), "tokens", flags=flags)
