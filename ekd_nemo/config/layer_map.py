"""Which teacher layer teaches which student layer, when nobody says."""

from ekd_nemo.errors import ConfigError

# Pairs of a recipe that names none: hidden states of every layer of a large teacher would fill memory.
DEFAULT_PAIRS = 4


def default_pairs(num_teacher: int, num_student: int) -> tuple[tuple[int, int], ...]:
    """(teacher layer, student layer), both from 0, of a feature loss whose recipe names none."""
    found = default_layer_map(num_teacher, num_student, min(DEFAULT_PAIRS, num_student))
    return tuple((teacher - 1, student - 1) for teacher, student in found)


def default_layer_map(
    num_teacher: int, num_student: int, num_pairs: int | None = None
) -> list[tuple[int, int]]:
    """Pair layers at the same relative depth, the last with the last.

    Layers count from 1, as Megatron's `layer_number`; a layer's hidden state is its output.

    Args:
        num_teacher: layers of the teacher.
        num_student: layers of the student.
        num_pairs: how many pairs, spread evenly over the student; None: one for each of its layers.

    Returns:
        (teacher layer, student layer), rising.

    Raises:
        ConfigError: fewer than one layer, or a number of pairs that the student cannot have.
    """
    if num_teacher < 1 or num_student < 1:
        raise ConfigError(f"layer map: {num_teacher} and {num_student} layers; both must be >= 1")
    num_pairs = num_student if num_pairs is None else num_pairs
    if not 1 <= num_pairs <= num_student:
        raise ConfigError(f"layer map: {num_pairs} pairs; accepted: 1 to {num_student}")
    students = [_round(i * num_student, num_pairs) for i in range(1, num_pairs + 1)]
    return [(max(1, _round(s * num_teacher, num_student)), s) for s in students]


def check_layer_map(pairs: list[tuple[int, int]], num_teacher: int, num_student: int) -> None:
    """Refuse pairs that name no layer, or one pair twice.

    Raises:
        ConfigError: the first pair that is wrong.
    """
    for i, (teacher, student) in enumerate(pairs):
        if not 1 <= teacher <= num_teacher:
            raise ConfigError(f"layer map: teacher layer {teacher}; accepted: 1 to {num_teacher}")
        if not 1 <= student <= num_student:
            raise ConfigError(f"layer map: student layer {student}; accepted: 1 to {num_student}")
        if (teacher, student) in pairs[:i]:
            raise ConfigError(f"layer map: the pair {teacher} -> {student} stands there twice")


def _round(numerator: int, denominator: int) -> int:
    """Round a positive fraction, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)
