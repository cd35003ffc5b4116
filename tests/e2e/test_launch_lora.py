"""A launch with adapters from end to end: trained, exported merged and alone, evaluated, summarised."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.training import curve, lines
from tests.slurm.project import make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BASE = "models/the teacher"
SETTINGS = (
    "student.lora={rank: 6, alpha: 12, dropout: 0.1}",
    f"student.init={{source: checkpoint, path: {BASE}}}",
    # The same model but for its adapters: only cross-entropy has something to teach.
    "objective.alpha=0.1",
    "train.steps=4",
    "train.val_interval=4",
    "train.checkpoint_interval=2",
    "evaluation.lm.limit=2",
)
PARTIES = ("base", "student", "teacher")  # what it began as, what it became, what taught it
# fp32; sums in another order where the product of both matrices is added before.
CLOSE = 1e-5


@dataclass(frozen=True)
class Launched:
    """A launch that is over."""

    folder: Path
    run: Path

    def ekd(self, *words: str) -> str:
        return ekd(self.folder, *words)


def ekd(folder: Path, *words: str) -> str:
    """What `ekd` prints; fails the test when it fails."""
    argv = [sys.executable, "-m", "ekd_nemo", *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def launched(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    folder = make_project(tmp_path_factory.mktemp("lora") / "here", teacher_folder)
    settings = [word for each in SETTINGS for word in ("--set", each)]
    ekd(folder, "recipe", "launch", "tiny", "--local", *settings)
    (run,) = (path.parent for path in (folder / "runs").glob("*/run.json"))
    return Launched(folder, run)


def test_a_launch_trains_adapters_and_its_figures_are_there(launched: Launched) -> None:
    losses = curve(lines(launched.run), "loss")
    assert sorted(losses) == [1, 2, 3, 4]
    assert losses[4] < losses[1], "lr 1e-2 on text that repeats itself"
    said = launched.ekd("metrics", "summarise", str(launched.run), "--format", "json")
    (summary,) = json.loads(said)["runs"]
    assert summary["figures"]["steps"]["value"] == 4
    assert summary["figures"]["e_run"]["value"] > 0
    names = sorted(path.name for path in (launched.run / "eval").glob("lm.*.json"))
    assert names == [f"lm.{who}.python_docs_last_word.json" for who in PARTIES]


def test_merged_and_alone_are_the_same_student(launched: Launched) -> None:
    """The exported folder, and peft with the adapters on the model that the student began as."""
    from peft import PeftModel

    steps = launched.run / "checkpoints"
    argv = [str(steps / "step_0000004"), "adapter", "--adapter", "--like", BASE]
    launched.ekd("convert", "export", *argv)
    base, merged = model(launched.folder / BASE), model(launched.run / "hf")
    tokens = torch.arange(100, 132)[None]
    with torch.no_grad():
        started, found = base(tokens).logits, merged(tokens).logits
        alone = PeftModel.from_pretrained(base, launched.folder / "adapter")(tokens).logits
    torch.testing.assert_close(alone, found, rtol=CLOSE, atol=CLOSE)
    assert float((found - started).abs().max()) > 100 * CLOSE


def model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
