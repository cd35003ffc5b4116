"""Losses and tokens over crashes, torn logs and data-parallel replicas."""

from pathlib import Path

import numpy as np
import pytest

from ekd_nemo.metrics.tokens import StepTokens, newest_attempts, trained_tokens
from ekd_nemo.metrics.training import read_training, training_of


def mark(
    step: int, *, attempt: int = 1, replica: int = 0, tokens: int = 100, valid: int | None = 90
) -> StepTokens:
    """One step of one rank."""
    values = (step, replica, tokens, -1 if valid is None else valid)
    return StepTokens(attempt, *(np.array([value], np.int64) for value in values))


def test_tokens_count_once_per_replica_however_many_ranks_mark_them() -> None:
    # two replicas, each on four tensor and pipeline ranks
    marks = [
        mark(step, replica=replica) for step in (1, 2, 3) for replica in (0, 1) for _ in range(4)
    ]
    result = trained_tokens(marks)
    assert (result.steps, result.tokens, result.tokens_valid) == (3, 600, 540)
    assert (result.lost_steps, result.flags) == (0, ())


def test_a_repeated_step_counts_once_and_undone_steps_not_at_all() -> None:
    first = [mark(step) for step in range(1, 16)]  # checkpoint at 10, killed in 16
    second = [mark(step, attempt=2) for step in (11, 12)]  # killed again before 13
    result = trained_tokens([*first, *second])
    assert (result.steps, result.tokens, result.lost_steps) == (12, 1200, 5)


def test_a_half_marked_step_falls_back_to_the_attempt_that_had_all_of_it() -> None:
    marks = [mark(1, replica=0), mark(1, replica=1), mark(1, attempt=2, replica=0)]
    assert trained_tokens(marks).tokens == 200


def test_ranks_that_disagree_are_flagged() -> None:
    result = trained_tokens([mark(1, tokens=100), mark(1, tokens=120)])
    assert (result.tokens, result.flags) == (120, ("tokens_disagree",))


def test_unknown_valid_tokens_make_the_sum_unknown() -> None:
    assert trained_tokens([mark(1), mark(2, valid=None)]).tokens_valid is None
    assert trained_tokens([]).tokens_valid is None


def test_the_newest_attempt_of_each_step() -> None:
    assert newest_attempts({1: [1], 2: [1, 2], 3: [1], 4: [3]}) == {1: 1, 2: 2, 4: 3}


def test_the_last_step_of_the_last_attempt_is_the_final_one() -> None:
    lines = [
        {"step": s, "attempt": 1, "loss": 10 - s, "ce": 1.5, "tokens": 10} for s in (1, 2, 3, 4)
    ]
    lines += [
        {"step": s, "attempt": 2, "loss": 20 - s, "tokens": 10, "tokens_valid": 9} for s in (3,)
    ]
    lines += [
        {"step": 2, "attempt": 1, "val_ce": 3.0},
        {"step": 3, "attempt": 2, "val_ce": 2.5, "val_kl_to_teacher": 0.5},
    ]
    result = training_of(reversed(lines), "no log")
    assert (result.loss.value, result.last_step.value, result.steps.value) == (17, 3, 3)
    assert result.ce.reason == "ce was not logged"
    assert (result.val_ce.value, result.val_kl.value) == (2.5, 0.5)
    assert result.tokens.value == 30
    assert result.tokens_valid.reason == "2 logged steps lack tokens_valid"


def test_a_loss_that_is_not_finite_is_missing_and_says_where(tmp_path: Path) -> None:
    log = tmp_path / "train.jsonl"
    log.write_text(
        '{"step":1,"loss":2.0}\n{"step":2,"loss":1e400}\n{"step":3,"loss":NaN}\nnot json\n{"step":4,"lo'
    )
    result = read_training(log)
    assert (result.loss.value, result.loss.reason) == (None, "loss is not finite at step 2")
    assert result.loss.flags == ("bad_lines", "torn_lines")


@pytest.mark.parametrize(
    "content", [None, "", "\n\n", '{"step":"7","loss":1}\n', '{"loss":1}\n[1]\n']
)
def test_without_a_step_everything_is_missing_with_a_reason(
    tmp_path: Path, content: str | None
) -> None:
    log = tmp_path / "train.jsonl"
    if content is not None:
        log.write_text(content)
    result = read_training(log)
    why = "no logs/train.jsonl" if content is None else "logs/train.jsonl holds no training step"
    assert {q.reason for q in (result.steps, result.loss, result.tokens, result.val_ce)} == {why}


def test_a_run_without_teacher_has_no_kl() -> None:
    result = training_of([{"step": 1, "loss": 1.0}, {"step": 1, "val_ce": 2.0}], "no log")
    assert result.val_kl.reason == "the run had no teacher to compare with"
    assert (
        training_of([{"step": 1, "loss": 1.0}], "no log").val_ce.reason
        == "no validation was logged"
    )
