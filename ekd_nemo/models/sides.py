"""Which ranks of a split run are the student's and which the teacher's.

All ranks are started alike, by torchrun or srun: the first are the student's, the last
`teacher.split.ranks` the teacher's. Each side then takes itself for a world of its own.
"""

import os
from dataclasses import dataclass

from ekd_nemo.config.placement import student_ranks, teacher_parallel, teacher_ranks
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.errors import LayoutError
from ekd_nemo.teacher.joint import Seat
from ekd_nemo.teacher.layout import Layout


@dataclass(frozen=True)
class Sides:
    """Both sides' layouts, and this rank's seat."""

    student: Layout
    teacher: Layout
    seat: Seat


def split_sides(recipe: Recipe, rank: int, world: int) -> Sides | None:
    """The sides of a split run; None for a run whose ranks are all the student's.

    Args:
        recipe: the run's.
        rank: of this process among all.
        world: all ranks.

    Raises: LayoutError, in one line, if the ranks do not hold whole copies of both.
    """
    teachers = teacher_ranks(recipe)
    if not teachers:
        return None
    students, parallel = student_ranks(recipe, world), teacher_parallel(recipe)
    assert parallel is not None
    layouts = Layout.of(recipe.student.parallel, students), Layout.of(parallel, teachers)
    if rank < students:
        return Sides(*layouts, Seat("student", rank, students, teachers))
    return Sides(*layouts, Seat("teacher", rank - students, students, teachers))


def enter_world(seat: Seat) -> None:
    """Make torch's variables those of this side's world; before NeMo is imported.

    Raises: LayoutError if the student's ranks fill one node and part of another: Lightning
        counts a world in equal nodes.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    ranks = seat.students if seat.side == "student" else seat.teachers
    if seat.side == "student":
        if seat.students > local and seat.students % local:
            raise LayoutError(
                f"the student's {seat.students} ranks fill nodes of {local} ranks in part; "
                f"accepted: up to {local}, or a multiple of it"
            )
        os.environ["LOCAL_WORLD_SIZE"] = str(min(local, seat.students))
    os.environ |= {"RANK": str(seat.rank), "WORLD_SIZE": str(ranks)}
