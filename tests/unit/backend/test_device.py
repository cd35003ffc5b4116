"""Which GPU is a rank's; no GPU is needed."""

import os

import pytest
import torch

from ekd_nemo.backend.device import let_messages_wait, take_device


def test_a_rank_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    take_device()
    assert taken == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    take_device()
    monkeypatch.delenv("LOCAL_RANK")
    take_device()
    assert taken == [3, 0]


def test_a_teachers_messages_do_not_share_one_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    let_messages_wait()
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "32"
