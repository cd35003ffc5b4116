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


def as_phase(name: str) -> Phase:
    """The phase of this name.

    Raises: ValueError, with the accepted names, if there is none.
    """
    if name not in PHASES:
        raise ValueError(f"unknown phase '{name}'; one of {', '.join(PHASES)}")
    return name
