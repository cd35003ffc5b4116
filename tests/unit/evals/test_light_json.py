"""Scores read from JSON that lighteval 0.13.0 wrote."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.errors import DataError
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.harnesses import LIGHT
from ekd_nemo.evals.light_json import LightResult
from ekd_nemo.evals.results import pair_scores, read_eval_dir
from tests.unit.evals.sidecars import DATED, harness_output, sidecar

GOLDEN = Path(__file__).parents[2] / "golden" / "lighteval" / "last_word.json"
TASK = "python_docs_last_word"


def place(folder: Path, role: str) -> None:
    out = folder / f"out_{role}" / "lighteval"
    out.mkdir(parents=True)
    shutil.copyfile(GOLDEN, out / f"results_{DATED}.json")
    lines = '{"doc_id": 0, "acc": 1}\n' * 20
    (out / f"samples_{TASK}_{DATED}.jsonl").write_text(lines)
    settings = sidecar(TASK, role, harness="lighteval", harness_version="0.13.0")
    EvalDir(folder / "eval", LIGHT).place(out.parent, settings)


def test_a_task_and_what_is_known_of_it(tmp_path: Path) -> None:
    place(tmp_path, "student")
    place(tmp_path, "teacher")
    scores = read_eval_dir(tmp_path / "eval")
    ((student, teacher),) = pair_scores(scores)
    assert (student.task, student.metric, student.value) == (TASK, "acc", 0.15)
    assert student.stderr == pytest.approx(0.0819178)
    assert (student.harness, student.version, student.n_samples) == ("lighteval", "0.13.0", 20)
    assert (student.primary, student.higher_is_better, student.is_group) == (True, True, False)
    assert student.settings_hash == teacher.settings_hash


def test_a_task_counts_once_where_both_harnesses_have_run_it(tmp_path: Path) -> None:
    place(tmp_path, "student")
    raw = {"results": {TASK: {"acc,none": 0.2}}, "n-samples": {TASK: {"effective": 1}}}
    out = harness_output(tmp_path / "lm", "group.json", {TASK: 1})
    (file,) = out.glob("*/results_*.json")
    file.write_text(json.dumps(raw))
    EvalDir(tmp_path / "eval").place(out, sidecar(TASK, "student"))
    counted = {s.harness: s.primary for s in read_eval_dir(tmp_path / "eval")}
    assert counted == {"lm-eval": True, "lighteval": False}


def hash_with(tmp_path: Path, **model: Any) -> str:
    raw = json.loads(GOLDEN.read_bytes())
    raw["config_general"]["model_config"] |= model
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(raw))
    return LightResult(path, "0.13.0", {TASK: 20}).settings_hash(TASK)


def test_precision_and_template_decide_and_batch_size_and_name_do_not(tmp_path: Path) -> None:
    plain = hash_with(tmp_path)
    assert hash_with(tmp_path, dtype="bfloat16") != plain
    assert hash_with(tmp_path, override_chat_template=True) != plain
    assert hash_with(tmp_path, batch_size=1, model_name="elsewhere", cache_dir="other") == plain


def test_a_suite_is_a_group_of_its_parts(tmp_path: Path) -> None:
    rows = {
        "mmlu:anatomy|5": {"acc": 0.5},
        "mmlu:law|5": {"acc": 0.3},
        "mmlu:_average|5": {"acc": 0.4},
    }
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({"results": {**rows, "all": {"acc": 0.4}}}))
    result = LightResult(path, "0.13.0", {"mmlu:anatomy": 4, "mmlu:law": 4})
    assert result.tasks == ("mmlu:anatomy", "mmlu:law", "mmlu:_average")
    assert result.is_group("mmlu:_average")
    assert result.group_of("mmlu:law") == "mmlu:_average"
    assert result.num_samples("mmlu:_average") == 8


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[1]")
    with pytest.raises(DataError, match="results file of lighteval"):
        LightResult(path, "0.13.0", {})
