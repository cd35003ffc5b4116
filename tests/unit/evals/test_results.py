"""Scores read from JSON that lm-eval 0.4.13 wrote."""

import json
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.errors import DataError
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.harness_json import HarnessResult
from ekd_nemo.evals.results import Score, pair_scores, read_eval_dir, read_results
from ekd_nemo.evals.table import score_rows
from tests.unit.evals.sidecars import GOLDEN, harness_output, sidecar


def place(folder: Path, role: str, golden: str, items: dict[str, int], task: str) -> None:
    EvalDir(folder / "eval").place(
        harness_output(folder / f"out_{role}_{task}", golden, items), sidecar(task, role)
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a group and bits per byte, for student and teacher (the same figures)."""
    for role in ("student", "teacher"):
        place(
            tmp_path,
            role,
            "group.json",
            {"addition_choice": 6, "product_choice": 6},
            "arithmetic_choice",
        )
        place(
            tmp_path,
            role,
            "bits_per_byte.json",
            {"python_docs_bits_per_byte": 20},
            "python_docs_bits_per_byte",
        )
    return tmp_path


def one(scores: list[Score], task: str, metric: str) -> Score:
    (score,) = [s for s in scores if (s.role, s.task, s.metric) == ("student", task, metric)]
    return score


def test_a_group_and_its_parts(run: Path) -> None:
    scores = read_results(run)
    group = one(scores, "arithmetic_choice", "acc")
    assert (group.value, group.stderr, group.n_samples) == (0.75, pytest.approx(0.13437096), 12)
    assert (group.is_group, group.group, group.primary, group.higher_is_better) == (
        True,
        None,
        True,
        True,
    )
    assert group.chance == 0.5  # the parts' own, weighted by items
    part = one(scores, "product_choice", "acc_norm")
    assert (part.is_group, part.group, part.primary, part.n_samples) == (
        False,
        "arithmetic_choice",
        False,
        6,
    )
    assert (part.harness, part.version, part.filter) == ("lm-eval", "0.4.13", "none")


def test_bits_per_byte_never_counts_and_has_no_error(run: Path) -> None:
    score = one(read_results(run), "python_docs_bits_per_byte", "bits_per_byte")
    assert score.value == pytest.approx(1.0171134889)
    assert (score.stderr, score.higher_is_better, score.primary, score.n_samples) == (
        None,
        False,
        False,
        20,
    )


def test_pairs_are_of_the_same_task_metric_and_filter(run: Path) -> None:
    pairs = pair_scores(read_results(run))
    assert len(pairs) == 6  # 2 parts x 2 metrics, the group, bits per byte
    assert all(s.settings_hash == t.settings_hash and s.role != t.role for s, t in pairs)


def test_an_empty_folder_has_no_scores(tmp_path: Path) -> None:
    assert read_results(tmp_path) == []


def test_the_table_shows_errors_and_gaps(run: Path) -> None:
    scores = [
        s
        for s in read_eval_dir(run / "eval")
        if (s.role, s.task) != ("teacher", "arithmetic_choice")
    ]
    assert score_rows(scores) == [
        ["task", "metric", "better", "student", "teacher"],
        ["arithmetic_choice", "acc", "higher", "0.7500 ± 0.1344", "n/a"],
        ["python_docs_bits_per_byte", "bits_per_byte", "lower", "1.0171", "1.0171"],
    ]


def settings_hash_of(tmp_path: Path, change: dict[str, Any]) -> str:
    """The settings hash of the golden result with top-level sections updated."""
    raw = json.loads((GOLDEN / "bits_per_byte.json").read_bytes())
    for section, update in change.items():
        raw[section] = {**raw[section], **update} if isinstance(update, dict) else update
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(raw))
    return HarnessResult(path).settings_hash("python_docs_bits_per_byte")


@pytest.mark.parametrize(
    "change",
    [
        {"lm_eval_version": "0.4.14"},
        {"task_hashes": {"python_docs_bits_per_byte": "other items"}},
        {"config": {"model_dtype": "torch.bfloat16"}},
        {"config": {"fewshot_seed": 7}},
        {"n-shot": {"python_docs_bits_per_byte": 3}},
        {"versions": {"python_docs_bits_per_byte": 2.0}},
        {"chat_template_sha": "abc"},
    ],
)
def test_whatever_decides_scores_changes_the_settings_hash(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    assert settings_hash_of(tmp_path, change) != settings_hash_of(tmp_path, {})


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"batch_size": 1, "device": "cuda", "model_args": {"pretrained": "elsewhere"}}},
        {"model_name": "elsewhere", "date": 1.0, "total_evaluation_time_seconds": "1"},
        {"results": {"python_docs_bits_per_byte": {"bits_per_byte,none": 3.0}}},
    ],
)
def test_what_does_not_decide_scores_leaves_it(tmp_path: Path, change: dict[str, Any]) -> None:
    assert settings_hash_of(tmp_path, change) == settings_hash_of(tmp_path, {})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"results": 3}', '{"other": {}}', "\x00"])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"broken\.json"):
        HarnessResult(path)


def test_numbers_that_are_none_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(
        '{"results": {"t": {"acc,none": NaN, "f1,none": "N/A", "x,none": true, "em,none": 0.5}}}'
    )
    assert [figure.metric for figure in HarnessResult(path).figures("t")] == ["em"]
