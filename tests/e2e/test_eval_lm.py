"""`ekd eval lm` as a user calls it: the real harness on real folders, checked against plain transformers."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ekd_nemo.evals.results import read_eval_dir, read_results
from ekd_nemo.records.jsonl import ReadReport, read_lines
from ekd_nemo.records.lines import PhaseBegin
from ekd_nemo.records.rundir import RunDir
from tests.e2e.evaluated_run import make_run
from tests.tiny_model import make_tiny

pytestmark = pytest.mark.timeout(900)  # start-up alone is 10 s on an idle core
LIMIT = 10


def ekd(cwd: Path, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ekd_nemo", *map(str, words)]
    return subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", teacher_folder)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """The results of the teacher on the first items of both built-in tasks."""
    cwd = tmp_path_factory.mktemp("cwd")
    done = ekd(
        cwd, "eval", "lm", teacher_folder, "--limit", str(LIMIT), "--out", "out", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    return cwd / "out"


def value(folder: Path, task: str) -> float:
    (score,) = [score for score in read_eval_dir(folder) if score.task == task]
    assert score.n_samples == LIMIT
    return score.value


def items(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = (folder / "samples").glob(f"lm.model.{task}.*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_bits_per_byte_is_that_of_transformers_logits(
    evaluated: Path, teacher_folder: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    nats, num_bytes = 0.0, 0
    for item in items(evaluated, "python_docs_bits_per_byte"):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(item["doc"]["text"])["input_ids"]]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].double().log_softmax(-1)
        nats -= log_probs.gather(-1, ids[0, 1:, None]).sum().item()
        num_bytes += len(item["doc"]["text"].encode())
    # fp32 sums in another order and other batch shapes: far below 1e-3
    expected = nats / math.log(2) / num_bytes
    assert value(evaluated, "python_docs_bits_per_byte") == pytest.approx(expected, rel=1e-3)


def test_last_word_accuracy_is_a_plain_count(evaluated: Path, teacher_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    right = []
    for item in items(evaluated, "python_docs_last_word"):
        context, word = item["doc"]["context"], item["doc"]["word"]
        told = tokenizer(context)["input_ids"]
        wanted = tokenizer(f"{context} {word}")["input_ids"][len(told) :]
        for _ in wanted:  # one greedy token after another
            with torch.no_grad():
                told.append(int(model(torch.tensor([told])).logits[0, -1].argmax()))
        right.append(tokenizer.decode(told[-len(wanted) :]) == f" {word}")
    assert 0 < sum(right) < LIMIT, "a count that tells right from wrong"
    assert [bool(item["acc"]) for item in items(evaluated, "python_docs_last_word")] == right
    assert value(evaluated, "python_docs_last_word") == pytest.approx(sum(right) / LIMIT)


def test_a_run_gets_scores_of_student_and_teacher_and_a_marked_phase(
    tmp_path: Path, tiny: Path, teacher_folder: Path
) -> None:
    run = make_run(tmp_path, tiny, teacher_folder)
    # As under the launcher, whose sampler runs.
    launched = {"EKD_DEVICE_UUIDS": "CPU-node-package-0"}
    done = ekd(tmp_path, "eval", "lm", run, **launched)
    assert done.returncode == 0, done.stderr
    scores = {(s.role, s.task): s for s in read_results(run)}
    assert {role for role, _ in scores} == {"student", "teacher"}
    for task in ("python_docs_last_word", "python_docs_bits_per_byte"):
        student, teacher = scores["student", task], scores["teacher", task]
        assert student.settings_hash == teacher.settings_hash
        assert student.weights_hash != teacher.weights_hash
        assert student.n_samples == teacher.n_samples == 2
    bits = {
        role: scores[role, "python_docs_bits_per_byte"].value for role in ("student", "teacher")
    }
    assert bits["teacher"] < 2 < bits["student"]
    lines = read_lines(RunDir(run).marks(0), ReadReport())
    (begin,) = [line for line in lines if isinstance(line, PhaseBegin)]
    assert (begin.phase, list(begin.uuids)) == ("eval", ["CPU-node-package-0"])
    assert [path.name for path in run.glob("eval/.*")] == []
    again = ekd(tmp_path, "eval", "lm", run, **launched)
    assert again.returncode == 0
    assert again.stdout.count("not run again") == 4


def test_a_task_that_fails_leaves_the_results_before_it(tmp_path: Path, tiny: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "good.jsonl").write_text('{"q": "One and one is", "a": " two"}\n' * 2)
    for name in ("good", "bad"):
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "{{q}}",
            "doc_to_target": "{{a}}",
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    words = ("eval", "lm", tiny, "--include-path", folder, "--tasks", "good,bad", "--out", "out")
    done = ekd(tmp_path, *words)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: bad on ")
    assert "bad.jsonl" in line
    assert "the log is out/lm_eval.log" in line
    assert [score.task for score in read_eval_dir(tmp_path / "out")] == ["good"]
    assert list((tmp_path / "out").glob(".lm-*")) == []


def test_an_unknown_task_is_the_users_mistake_and_changes_nothing(
    tmp_path: Path, tiny: Path
) -> None:
    (tmp_path / "t.yaml").write_text("task: alpha_choice\ndataset_path: json\n")
    done = ekd(
        tmp_path,
        "eval",
        "lm",
        tiny,
        "--include-path",
        tmp_path,
        "--tasks",
        "alpha_chioce",
        "--out",
        "out",
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown task 'alpha_chioce'; did you mean")
    assert read_eval_dir(tmp_path / "out") == []


def test_weights_that_cannot_be_loaded_are_named(tmp_path: Path, tiny: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    done = ekd(tmp_path, "eval", "lm", "broken", "--limit", "1", "--out", "out")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: broken: cannot be loaded: ")
