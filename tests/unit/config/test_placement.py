"""Ranks that hold whole copies of student and teacher, and one clear line where they do not."""

from typing import Any

import pytest

from ekd_nemo.config.placement import student_ranks, teacher_parallel
from ekd_nemo.config.recipe import Parallel, Recipe
from ekd_nemo.errors import LayoutError

SPLIT = {"placement": "split", "split": {"ranks": 4}}


def recipe(teacher: dict[str, Any], student: dict[str, Any] | None = None) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "method": "response",
            "teacher": {"path": "t"} | teacher,
            "student": {"init": {"source": "random", "path": "s"}, "parallel": student or {}},
            "data": {"path": "d"},
            "objective": {"alpha": 0.5, "response": {}},
            "optimizer": {"lr": 1e-3},
            "train": {"steps": 1, "global_batch_size": 8},
        }
    )


def test_without_a_layout_the_teacher_takes_the_students_without_interleaving() -> None:
    cut = {"tensor": 2, "pipeline": 2, "virtual_pipeline": 2}
    assert teacher_parallel(recipe({}, cut)) == Parallel(tensor=2, pipeline=2)
    assert teacher_parallel(recipe({"parallel": {"tensor": 4}}, cut)) == Parallel(tensor=4)


def test_a_cached_teacher_stands_on_no_rank() -> None:
    cached = recipe({"placement": "cached", "cache": {"path": "c"}, "parallel": {"tensor": 8}})
    assert teacher_parallel(cached) is None
    assert student_ranks(cached, 3) == 3


@pytest.mark.parametrize(
    ("teacher", "student", "world", "students"),
    [
        ({}, {"tensor": 2}, 4, 4),
        ({"parallel": {"tensor": 4}}, {}, 8, 8),
        (SPLIT, {"tensor": 2}, 6, 2),
        (SPLIT | {"parallel": {"tensor": 2, "pipeline": 2}}, {}, 5, 1),
    ],
)
def test_the_first_ranks_are_the_students(
    teacher: dict[str, Any], student: dict[str, Any], world: int, students: int
) -> None:
    assert student_ranks(recipe(teacher, student), world) == students


@pytest.mark.parametrize(
    ("teacher", "student", "world", "message"),
    [
        ({}, {"tensor": 2}, 3, "3 ranks cannot hold copies of tensor 2 x pipeline 1; accepted: a multiple of 2"),
        (SPLIT, {}, 4, "4 ranks less the teacher's 4 .*, and 4 for the teacher"),
        (SPLIT | {"parallel": {"tensor": 3}}, {}, 5, r"teacher\.parallel: 4 ranks \(teacher\.split\.ranks\)"),
        ({"parallel": {"tensor": 8}}, {}, 4, r"teacher\.parallel: 4 ranks \(the student's ranks\) .* multiple of 8"),
        (
            {"parallel": {"pipeline": 2, "virtual_pipeline": 2}},
            {},
            4,
            r"teacher\.parallel\.virtual_pipeline is set.*accepted is none",
        ),
    ],
)  # fmt: skip
def test_ranks_that_do_not_fit(
    teacher: dict[str, Any], student: dict[str, Any], world: int, message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        student_ranks(recipe(teacher, student), world)
