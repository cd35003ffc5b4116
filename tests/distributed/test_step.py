"""A training step of every objective, in every pair of options: terms and gradients of float64.

Megatron's own schedules, its data-parallel buffers and its finishing of gradients run on gloo
ranks; the reference is transformers' Llama in one process with losses that hold whole logits.
"""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.distributed.ranks import run_ranks
from tests.distributed.step_cases import (
    OBJECTIVES,
    OPTIONS,
    STUDENT,
    TEACHER,
    UNTIED,
    Case,
    covering,
    objective,
    samples,
)
from tests.distributed.step_ranks import steps
from tests.distributed.step_reference import reference
from tests.e2e.training import write_config, write_model
from tests.forkserver import forkserver

pytestmark = pytest.mark.timeout(900)

# Seconds for the ranks of one world size: a case takes 2 to 6 on two cores; 30 on a busy machine.
LEAST_S, CASE_S = 600, 30

# fp32 against float64 through a whole model: sums of some 1e3 terms in other orders.
BOUND = 1e-5
# Weights, activations and gradients of layers with 8 bits of mantissa (2^-8 = 4e-3), over 12 layers.
BOUND_BF16 = 5e-2


@dataclass
class Expected:
    """The references that a test has asked for, each computed once and left in a folder."""

    folder: Path
    means: dict[str, dict[str, float]] = field(default_factory=dict)

    def of(self, case: Case) -> dict[str, float]:
        if case.reference not in self.means:
            self._make(case)
        return self.means[case.reference]

    def _make(self, case: Case) -> None:
        student, folder = self.folder / case.student_folder, self.folder / case.reference
        result = reference(objective(case.objective), student, self.folder / "teacher", samples())
        self.means[case.reference] = result.means
        write_config(folder, case.student)
        gradients = {name: grad.float().contiguous() for name, grad in result.gradients.items()}
        save_file(gradients, folder / "model.safetensors", metadata={"format": "pt"})
        save_file(result.projectors or {"none": torch.zeros(1)}, folder / "projectors")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    folder = tmp_path_factory.mktemp("step")
    write_model(folder / "teacher", TEACHER, seed=11)
    write_model(folder / Case(tied=True).student_folder, STUDENT, seed=7)
    write_model(folder / Case(tied=False).student_folder, UNTIED, seed=7)
    return Expected(folder)


def check(
    cases: list[Case],
    expected: Expected,
    tmp_path: Path,
    dtype: torch.dtype = torch.float32,
    bound: float = BOUND,
) -> None:
    wrong: list[str] = []
    for case in cases:
        expected.of(case)
    for world, group in itertools.groupby(sorted(cases, key=lambda c: c.world), lambda c: c.world):
        members = list(group)
        results = run_ranks(
            steps,
            world,
            tmp_path,
            members,
            expected.folder,
            dtype,
            timeout_s=max(LEAST_S, CASE_S * len(members)),
            context=forkserver(),
        )
        for case, *found in zip(members, *results, strict=True):
            means = expected.of(case)
            for values in found:
                errors = {k: values.pop(k) for k in ("gradient", "projector") if k in values}
                assert ("projector" in errors) == (objective(case.objective).feature is not None)
                assert set(values) == set(means)
                gaps = {k: abs(values[k] - means[k]) / abs(means[k]) for k in means} | errors
                wrong += [f"{case}: {k} {gap:.1e}" for k, gap in gaps.items() if not gap < bound]
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_every_objective_on_one_rank(expected: Expected, tmp_path: Path) -> None:
    check([Case(objective=name) for name in OBJECTIVES], expected, tmp_path)


def test_covering_set_holds_every_pair() -> None:
    """By a count of its own: two values of two options meet in a case, or in no possible one."""
    chosen = covering()
    for (a, va), (b, vb) in itertools.combinations(OPTIONS.items(), 2):
        for x, y in itertools.product(va, vb):
            met = any(getattr(c, a) == x and getattr(c, b) == y for c in chosen)
            impossible = {a: x, b: y} in (
                {"tensor": 1, "sequence": True},
                {"tensor": 4, "stages": "4"},
                {"stages": "4", "data": 4},
                {"tensor": 4, "data": 4},
            )
            assert met is not impossible, (a, x, b, y)
    assert all(case.world <= 8 for case in chosen)


def test_every_pair_of_options(expected: Expected, tmp_path: Path) -> None:
    check(covering(), expected, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)  # some two hundred cases
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_layout(name: str, expected: Expected, tmp_path: Path) -> None:
    layouts = itertools.product(
        *(values for key, values in OPTIONS.items() if key not in ("objective", "recompute"))
    )
    keys = [key for key in OPTIONS if key not in ("objective", "recompute")]
    cases = [Case(objective=name, **dict(zip(keys, each, strict=True))) for each in layouts]
    check([case for case in cases if case.possible], expected, tmp_path)


def test_bf16(expected: Expected, tmp_path: Path) -> None:
    cases = [
        Case(objective="combined"),
        Case(objective="combined", tensor=2, sequence=True, stages="2"),
        Case(objective="forward_kl", tensor=2, data=2),
    ]
    check(cases, expected, tmp_path, torch.bfloat16, BOUND_BF16)


def test_a_term_that_is_off_is_seen(expected: Expected, tmp_path: Path) -> None:
    """The comparison itself can fail."""
    case = Case()
    changed = {name: value * (1 + 1e-4) for name, value in expected.of(case).items()}
    with pytest.raises(AssertionError, match="loss 1\\.0e-04"):
        check([case], replace(expected, means={case.reference: changed}), tmp_path)
