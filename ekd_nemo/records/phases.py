"""The phases of a run, and which of them `E_run` counts."""

from typing import Final, Literal, get_args

Phase = Literal[
    "prerun",
    "preprocess",
    "teacher_forward",
    "teacher_cache",
    "student_train",
    "checkpoint",
    "eval",
    "ept",
    "idle",
]

PHASES: Final[tuple[Phase, ...]] = get_args(Phase)

# From prerun through checkpoint; evaluation, the inference benchmark and idle are separate lines.
E_RUN_PHASES: Final[tuple[Phase, ...]] = PHASES[: PHASES.index("checkpoint") + 1]


def check_phase(name: str) -> None:
    """Raise ValueError, with the accepted names, unless `name` is a phase."""
    if name not in PHASES:
        raise ValueError(f"unknown phase '{name}'; one of {', '.join(PHASES)}")
