"""lm-eval's model on a CPU: `auto` gives as many sequences as the longest request of a task leaves memory for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ekd_nemo.evals.request import Job, LmSettings
from tests.tiny_model import make_tiny

pytest.importorskip("lm_eval")
GIB = 2**30


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Any:
    from ekd_nemo.harness.lm_model import load_model

    folder = make_tiny(tmp_path_factory.mktemp("tiny") / "m", teacher_folder)
    job = Job(name="model", model=str(folder), tasks=(), out="")
    return load_model(job, LmSettings(tasks=(), batch_size="auto"), "cpu")


@pytest.mark.parametrize(
    ("length", "free", "sequences"),
    [
        (8192, 20 * GIB, 1),  # 4.5 GiB of logits a sequence, of 6 GiB
        (512, 20 * GIB, 16),
        (512, 4 * GIB, 4),
        (8192, GIB, 1),
    ],
)
def test_sequences_are_what_the_logits_leave_room_for(
    length: int, free: int, sequences: int
) -> None:
    from ekd_nemo.harness.lm_model import fitting

    assert fitting(length, 49152, free) == sequences


@pytest.mark.parametrize(
    ("ask", "arguments", "tokens"),
    [
        ("loglikelihood", [("one two", " three"), ("one", " two")], 3),
        ("loglikelihood_rolling", [("one two three",), ("one",)], 4),  # and what stands before it
        ("generate_until", [("one two", {"until": ["."], "max_gen_toks": 5})], 7),
    ],
)
def test_each_task_is_sized_by_its_longest_request(
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
    ask: str,
    arguments: list[tuple[Any, ...]],
    tokens: int,
) -> None:
    from ekd_nemo.harness import lm_model

    asked: list[int] = []

    def fitting(length: int, vocab_size: int, free_bytes: float) -> int:
        asked.append(length)
        return 3

    monkeypatch.setattr(lm_model, "fitting", fitting)
    requests = [SimpleNamespace(args=args) for args in arguments]
    answers = getattr(model, ask)(requests, disable_tqdm=True)
    assert len(answers) == len(requests)
    assert asked == [tokens]
    assert lm_model.chosen_batch(model) == 3


@pytest.mark.parametrize(
    ("gpus", "free", "spread"),
    [(8, 4_000, True), (8, GIB, False), (1, 4_000, False)],  # the weights take 4.4 kB and more
)
def test_a_model_that_one_gpu_cannot_hold_is_spread_over_those_that_are_there(
    model: Any, monkeypatch: pytest.MonkeyPatch, gpus: int, free: int, spread: bool
) -> None:
    import torch

    from ekd_nemo.harness import lm_model

    asked: list[bool] = []

    def loaded(**options: Any) -> SimpleNamespace:
        asked.append(options["parallelize"])
        return SimpleNamespace()

    monkeypatch.setattr(lm_model, "HFLM", loaded)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, free))
    job = Job(name="model", model=str(model.pretrained), tasks=(), out="")
    lm_model.load_model(job, LmSettings(tasks=()), "cuda")
    assert asked == [spread]
