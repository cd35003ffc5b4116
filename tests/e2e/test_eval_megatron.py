"""`ekd eval lm` on a Megatron checkpoint, by two ranks: its scores are those of Megatron's own logits."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ekd_nemo.config.architecture import CHECKPOINT_ASSETS, read_architecture
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.results import read_eval_dir
from tests.distributed.gpt_ranks import filled, logits, save_folders, start_parallel
from tests.distributed.ranks import run_ranks
from tests.tiny_model import make_tiny

pytestmark = pytest.mark.slow  # half a minute of rank processes, half a minute of the harness
LIMIT = 7  # odd: two ranks get unequal parts
BITS, WORDS = "python_docs_bits_per_byte", "python_docs_last_word"


def megatron_scores(
    rank: int, world_size: int, checkpoint: Path, rows: list[tuple[list[int], int]]
) -> list[tuple[float, bool]]:
    """Log-likelihood of what follows the first `told` ids of each row, and whether it is the likeliest text."""
    from ekd_nemo.models.convert_source import open_source

    start_parallel(1, 1)
    model = filled(open_source(checkpoint), 1, 1)
    found: list[tuple[float, bool]] = []
    for ids, told in rows:
        out = logits(model, torch.tensor([ids]))
        assert out is not None
        vocabulary = out[0, told - 1 : -1, : model.vocab_size]
        wanted = torch.tensor(ids[told:])
        chosen = vocabulary.double().log_softmax(-1).gather(-1, wanted[:, None])
        found.append((float(chosen.sum()), bool((vocabulary.argmax(-1) == wanted).all())))
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """A tiny decoder as Megatron saves it on two pipeline stages, with its model beside it as imports leave it."""
    from ekd_nemo.models.convert_folder import write_assets

    tmp = tmp_path_factory.mktemp("megatron")
    folder = make_tiny(tmp / "tiny", teacher_folder, num_hidden_layers=1)
    run_ranks(save_folders, 1, tmp, [folder], tmp / "saved", timeout_s=300)
    saved = tmp / "saved" / "tiny" / "pp1"
    write_assets(saved / CHECKPOINT_ASSETS, read_architecture(folder), folder)
    return saved


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    cwd = tmp_path_factory.mktemp("evaluated")
    argv = [sys.executable, "-m", "ekd_nemo", "eval", "lm", str(checkpoint), "--device", "cpu"]
    argv += ["--tasks", f"{BITS},{WORDS}", "--limit", str(LIMIT), "--ranks", "2", "--out", "out"]
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert "exporting" in done.stdout
    return cwd / "out"


def items(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = (folder / "samples").glob(f"lm.model.{task}.*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["doc_id"])


@pytest.fixture(scope="module")
def megatron(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint: Path,
    evaluated: Path,
    teacher_folder: Path,
) -> dict[str, list[tuple[float, bool]]]:
    """Megatron's figures of the items that the harness was given, by task."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    rows: list[tuple[list[int], int]] = []
    for item in items(evaluated, BITS):
        rows.append(([tokenizer.bos_token_id, *tokenizer(item["doc"]["text"])["input_ids"]], 1))
    for item in items(evaluated, WORDS):
        context, word = item["doc"]["context"], item["doc"]["word"]
        whole = tokenizer(f"{context} {word}")["input_ids"]
        rows.append((whole, len(tokenizer(context)["input_ids"])))
    (found,) = run_ranks(
        megatron_scores, 1, tmp_path_factory.mktemp("ranks"), checkpoint, rows, timeout_s=300
    )
    return {BITS: found[:LIMIT], WORDS: found[LIMIT:]}


def test_every_items_log_likelihood_is_that_of_megatrons_logits(
    evaluated: Path, megatron: dict[str, list[tuple[float, bool]]]
) -> None:
    words = items(evaluated, WORDS)
    assert [item["doc_id"] for item in words] == list(range(LIMIT)), "both ranks' items, each once"
    for item, (log_likelihood, greedy) in zip(words, megatron[WORDS], strict=True):
        ((found, found_greedy),) = item["filtered_resps"]
        # fp32 logits of one narrow layer, sums of a few tokens: below 1e-4
        assert float(found) == pytest.approx(log_likelihood, abs=1e-4)
        assert (str(found_greedy) == "True") == greedy == bool(item["acc"])


def test_bits_per_byte_are_those_of_megatrons_logits(
    evaluated: Path, megatron: dict[str, list[tuple[float, bool]]]
) -> None:
    nats = -sum(log_likelihood for log_likelihood, _ in megatron[BITS])
    num_bytes = sum(len(item["doc"]["text"].encode()) for item in items(evaluated, BITS))
    (score,) = [s for s in read_eval_dir(evaluated) if s.metric == "bits_per_byte"]
    assert score.n_samples == LIMIT
    # some 2,700 tokens, summed in fp32 by one and fp64 by the other
    assert score.value == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_the_record_names_the_checkpoint_and_the_ranks(evaluated: Path, checkpoint: Path) -> None:
    for stored in EvalDir(evaluated).stored():
        assert stored.settings.model.path == str(checkpoint)
        assert stored.settings.ranks == 2
