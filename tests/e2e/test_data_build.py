"""`ekd data build` as a user runs it: real processes, real text."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ekd_nemo.config.data import DataBuild
from ekd_nemo.data.build import build
from ekd_nemo.data.packed import PackedDataset
from tests.unit.data.tokenizers import saved_tokenizer

SHARED = Path(os.environ.get("EKD_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
GSM8K = SHARED / "gsm8k" / "train.jsonl"


def ekd(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ekd_nemo", *argv]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def test_shards_are_built_then_kept_then_refused(tmp_path: Path) -> None:
    saved_tokenizer(tmp_path / "tokenizer")
    argv = (
        "data",
        "build",
        "--source",
        "python-docs",
        "--tokenizer",
        "tokenizer",
        "--out",
        "shards",
    )
    built = ekd(*argv, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    assert "train: " in built.stdout
    assert "% full" in built.stdout
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert manifest["splits"]["validation"]["samples"] > 0
    kept = ekd(*argv, cwd=tmp_path)
    assert (kept.returncode, kept.stdout) == (0, "shards: kept, built with the same settings\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": broken}\n')
    argv = (
        "data",
        "build",
        "--source",
        "jsonl:bad.jsonl",
        "--tokenizer",
        "tokenizer",
        "--out",
        "new",
    )
    broken = ekd(*argv, cwd=tmp_path)
    assert broken.returncode == 2
    assert "error: bad.jsonl, line 2: not valid JSON" in broken.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer", "shards", "bad.jsonl"}


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"no {GSM8K}; set EKD_TEST_DATA to the test data")
def test_real_questions_and_answers_with_the_teachers_template(
    tmp_path: Path, teacher_folder: Path
) -> None:
    source = {"kind": "jsonl", "paths": [str(GSM8K)], "max_documents": 400}
    settings = DataBuild.model_validate(
        {
            "sources": [source],
            "tokenizer": str(teacher_folder),
            "template": "chat",
            "sequence_length": 1024,
        }
    )
    manifest = build(settings, tmp_path / "shards")
    records = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    answers = Counter()
    for split in ("train", "validation"):
        for sample in PackedDataset(tmp_path / "shards", split):
            for segment in range(int(sample["segment_ids"].max()) + 1):
                learned = sample["loss_mask"] & (sample["segment_ids"] == segment)
                answers[tokenizer.decode(sample["labels"][learned])] += 1
    assert sum(answers.values()) == 400
    assert set(answers) <= {f"{record['answer']}<|im_end|>" for record in records}
    assert manifest["splits"]["train"]["documents_cut"] == 0
    assert manifest["splits"]["train"]["boundary_tokens"] == 0
    assert manifest["splits"]["train"]["fill"] > 0.94
