"""The named suites on local task files of the shapes that lm-eval's own have; word problems; no hub, no space."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.known_tasks import facts_of
from ekd_nemo.evals.results import Score, read_eval_dir
from ekd_nemo.evals.suites import SUITES
from tests.conftest import ROOT
from tests.tiny_model import make_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DATA = Path(os.environ.get("EKD_TEST_DATA", ROOT.parent / "shared" / "data"))
LIMIT = 3
CHOICE = {
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
}
ACC, ACC_NORM = ({"metric": name, "higher_is_better": True} for name in ("acc", "acc_norm"))
EXACT = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
ANSWER = {"function": "regex", "regex_pattern": "answer is (.*)\\."}


def write_tasks(folder: Path) -> Path:
    """mmlu and bbh as groups over included templates, the others as single tasks; shots come from another split."""
    folder.mkdir()
    lines = "".join(
        json.dumps({"question": f"{n} and {n}?", "choices": [f"{2 * n}", f"{n}"], "answer": n % 2})
        + "\n"
        for n in range(30)
    )
    files = {split: str(folder / f"{split}.jsonl") for split in ("test", "train")}
    for path in files.values():
        Path(path).write_text(lines)
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    shots = {"training_split": "train", "fewshot_split": "train"}
    generated = {
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "The answer is {{choices[answer]}}.",
        "generation_kwargs": {"until": ["Q:"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [EXACT],
    }

    def put(name: str, **body: Any) -> None:
        (folder / name).write_text(yaml.safe_dump(body))

    put("_mmlu_template_yaml", **data, **shots, **CHOICE, metric_list=[ACC])
    for part in ("mmlu_algebra", "mmlu_law"):
        put(f"{part}.yaml", include="_mmlu_template_yaml", task=part)
    weighted = [{"metric": "acc", "weight_by_size": True}]
    put(
        "mmlu.yaml", group="mmlu", task=["mmlu_algebra", "mmlu_law"], aggregate_metric_list=weighted
    )
    for task, metrics in (
        ("arc_challenge", [ACC, ACC_NORM]),
        ("hellaswag", [ACC, ACC_NORM]),
        ("truthfulqa_mc2", [ACC]),
    ):
        put(f"{task}.yaml", task=task, **data, **shots, **CHOICE, metric_list=metrics)
    answer = [{"name": "get-answer", "filter": [ANSWER, {"function": "take_first"}]}]
    part = "bbh_cot_fewshot_navigate"
    put(f"{part}.yaml", task=part, **data, **generated, filter_list=answer)
    exact = [{"metric": "exact_match", "weight_by_size": True, "filter_list": "get-answer"}]
    put("bbh.yaml", group="bbh", task=[part], aggregate_metric_list=exact)
    strict = [{**answer[0], "name": "strict-match"}]
    put("gsm8k.yaml", task="gsm8k", **data, **shots, **generated, filter_list=strict)
    return folder


def eval_lm(
    cwd: Path, *words: str | Path, most_bytes: int | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """`most_bytes`: no file may become larger, in place of a disk that is full."""

    def limit() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    argv = [sys.executable, "-m", "ekd_nemo", "eval", "lm", *map(str, words), "--device", "cpu"]
    return subprocess.run(
        argv,
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", teacher_folder)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The results of the whole `extended` suite, the batch as the memory allows."""
    cwd = tmp_path_factory.mktemp("suite")
    words = ("--tasks", "om_perf,extended", "--include-path", write_tasks(cwd / "tasks"))
    done = eval_lm(cwd, tiny, *words, "--limit", str(LIMIT), "--batch-size", "auto", "--out", "out")
    assert done.returncode == 0, done.stderr
    return cwd / "out"


def test_every_task_of_a_suite_counts_once_by_its_metric(out: Path) -> None:
    counted: dict[str, Score] = {s.task: s for s in read_eval_dir(out) if s.primary and not s.group}
    assert set(counted) == set(SUITES["extended"])
    for task, score in counted.items():
        facts = facts_of(task, {})
        assert facts is not None
        assert (score.metric, facts.filter in (None, score.filter)) == (facts.metric, True)
    assert (counted["mmlu"].is_group, counted["mmlu"].n_samples) == (True, 2 * LIMIT)
    assert counted["arc_challenge"].n_samples == LIMIT


def test_the_suite_fixes_the_shots_of_every_part(out: Path) -> None:
    found = {
        task: count
        for stored in EvalDir(out).stored()
        for task, count in stored.read().raw["n-shot"].items()
    }
    assert {task: found[task] for task in ("mmlu_algebra", "mmlu_law")} == {
        "mmlu_algebra": 5,
        "mmlu_law": 5,
    }
    assert (found["arc_challenge"], found["hellaswag"], found["gsm8k"]) == (25, 10, 5)
    (log,) = EvalDir(out).samples("model", "arc_challenge")
    prompt = json.loads(log.read_text().split("\n")[0])["arguments"]["gen_args_0"]["arg_0"]
    assert prompt.count("Question:") == 26


def test_batches_are_as_large_as_short_prompts_allow(out: Path) -> None:
    sizes = {stored.settings.task: stored.settings.batch_size for stored in EvalDir(out).stored()}
    assert all(isinstance(size, int) and size > 1 for size in sizes.values()), sizes


def test_word_problems_are_answered_in_writing(tmp_path: Path, tiny: Path) -> None:
    if not (DATA / "gsm8k" / "train.jsonl").is_file():
        pytest.skip(f"no {DATA}/gsm8k; set EKD_TEST_DATA to the test data")
    words = ("--tasks", "gsm8k_generate", "--task-data", DATA, "--limit", "3", "--out", "out")
    done = eval_lm(tmp_path, tiny, *words, "--batch-size", "auto")
    assert done.returncode == 0, done.stderr
    (score,) = read_eval_dir(tmp_path / "out")
    assert (score.task, score.metric, score.n_samples) == ("gsm8k_generate", "exact_match", 3)
    (log,) = (tmp_path / "out" / "samples").iterdir()
    item = json.loads(log.read_text().split("\n")[0])
    assert item["arguments"]["gen_args_0"]["arg_0"].count("####") == 4, "four worked examples"
    assert item["resps"][0][0], "an answer was written"


def test_data_on_a_hub_that_cannot_be_reached_are_one_line(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "hub.yaml").write_text(
        yaml.safe_dump({"task": "far", "dataset_path": "no-such-owner/no-such-set", **CHOICE})
    )
    (tmp_path / "cache").mkdir()
    words = ("--tasks", "far", "--include-path", tmp_path, "--limit", "1", "--out", "out")
    done = eval_lm(tmp_path, tiny, *words, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "cache"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: far: its data are on a hub that cannot be reached")
    assert "--include-path" in line
    assert read_eval_dir(tmp_path / "out") == []


def test_no_space_is_one_line_and_the_earlier_result_stays(tmp_path: Path, tiny: Path) -> None:
    words = (tiny, "--tasks", "python_docs_last_word", "--out", "out")
    assert eval_lm(tmp_path, *words, "--limit", "2").returncode == 0
    before = read_eval_dir(tmp_path / "out")
    (data,) = (tmp_path / "assets").rglob("python_docs_last_word.jsonl")
    # The items fit, their log does not: it holds them, their prompts and their answers.
    done = eval_lm(tmp_path, *words, most_bytes=int(1.5 * data.stat().st_size))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: python_docs_last_word")
    assert "MiB free" in line or "File too large" in line
    assert read_eval_dir(tmp_path / "out") == before
    assert list((tmp_path / "out").glob(".lm-*")) == []
