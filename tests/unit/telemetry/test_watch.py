"""For whom a sampler lives."""

import subprocess
import sys

import pytest

from ekd_nemo.telemetry import watch as watch_module
from ekd_nemo.telemetry.watch import Watch, start_time
from tests.unit.telemetry.conftest import wait_for


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


def test_nobody_to_follow_is_not_the_end() -> None:
    assert not Watch(linger_s=0).is_over()


def test_the_last_ones_end_is_the_end_even_as_a_zombie() -> None:
    first, second = sleeper(), sleeper()
    watch = Watch(linger_s=0)
    watch.add(first.pid)
    watch.add(second.pid)
    first.kill()
    first.wait()
    assert not watch.is_over()
    second.kill()  # and not waited for: a zombie
    wait_for(lambda: start_time(second.pid) is None)
    assert watch.is_over()
    second.wait()


def test_a_reused_id_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(linger_s=0)
    starts = iter(["100", "100", "2000"])
    monkeypatch.setattr(watch_module, "start_time", lambda _pid: next(starts))
    watch.add(7)
    assert not watch.is_over()
    assert watch.is_over()


def test_whoever_is_gone_already_is_lingered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [10.0]
    monkeypatch.setattr(watch_module.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(watch_module, "start_time", lambda pid: "1" if pid == 7 else None)
    watch = Watch(linger_s=5)
    watch.add(6)
    assert not watch.is_over()
    now_s[0] = 14.0
    watch.add(7)  # a relaunch
    now_s[0] = 99.0
    assert not watch.is_over()
