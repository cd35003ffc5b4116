"""Marks on a device whose queues do not empty by themselves; the device is played."""

import contextlib
import json
import threading
from pathlib import Path

import pytest

from ekd_nemo.models import phases
from ekd_nemo.models.phases import PhaseClock, TeacherPhases


class PlayedDevice:
    """Computing is done at once; a message stays in the device until it is taken, which nobody does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed = 0
        monkeypatch.setattr(phases, "_finish_device_work", self._finish_all)
        monkeypatch.setattr(phases, "_finish_computing", self._finish_computing)

    def _finish_all(self) -> None:
        raise AssertionError("waits for a message that nobody takes")

    def _finish_computing(self) -> None:
        self.computed += 1


def clock(folder: Path) -> PhaseClock:
    return PhaseClock(folder / "telemetry" / "marks-1.jsonl", 1, {"tensor": 0}, ["CPU"])


def marked(folder: Path) -> list[tuple[str, str]]:
    text = (folder / "telemetry" / "marks-1.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [(line["kind"], line["phase"]) for line in lines]


def test_a_teacher_that_is_ahead_idles_while_its_messages_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = clock(tmp_path)
    marks.enter("prerun")
    teacher, device = TeacherPhases(marks), PlayedDevice(monkeypatch)
    with teacher.busy():
        pass
    assert device.computed == 2
    assert marked(tmp_path) == [
        ("phase_begin", "prerun"),
        ("phase_end", "prerun"),
        ("phase_begin", "teacher_forward"),
        ("phase_end", "teacher_forward"),
        ("phase_begin", "idle"),
    ]


def test_a_teacher_ends_though_it_never_gets_done_with_computing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ranks of its group have ended, its own collective hangs."""
    marks = clock(tmp_path)
    marks.enter("prerun")
    teacher, hangs, hung = TeacherPhases(marks), threading.Event(), threading.Event()
    PlayedDevice(monkeypatch)

    def hang() -> None:
        hung.set()
        hangs.wait(10)
        raise SystemExit  # of the thread alone

    monkeypatch.setattr(phases, "_finish_computing", hang)
    codes: list[int] = []
    monkeypatch.setattr(phases.os, "_exit", codes.append)

    def work() -> None:
        with contextlib.suppress(SystemExit), teacher.busy():
            pass

    working = threading.Thread(target=work, daemon=True)
    working.start()
    hung.wait(10)
    ending = threading.Thread(target=teacher.end_process, daemon=True)
    ending.start()
    ending.join(5)
    found = list(codes)
    hangs.set()
    assert found == [0]
    assert marked(tmp_path)[-1] == ("phase_end", "prerun")
