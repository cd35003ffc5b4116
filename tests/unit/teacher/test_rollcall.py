"""Deaths, failures and farewells are told apart, and told to everybody."""

import multiprocessing
import os
import queue
import signal
import time

import pytest

from ekd_nemo.errors import RunError
from ekd_nemo.teacher.rollcall import Presence, RollCall

LIMIT_S = 5.0


@pytest.fixture
def heard() -> "queue.Queue[str]":
    return queue.Queue()


def roll(heard: "queue.Queue[str]") -> RollCall:
    return RollCall("127.0.0.1", lost=lambda reason: heard.put(f"roll: {reason}"))


def rank(call: RollCall, name: str, heard: "queue.Queue[str]") -> Presence:
    return Presence(
        call.host, call.port, call.token, name, lambda reason: heard.put(f"{name}: {reason}")
    )


def both(heard: "queue.Queue[str]", count: int) -> set[str]:
    return {heard.get(timeout=LIMIT_S) for _ in range(count)}


def test_the_roll_is_called_at_every_address() -> None:
    """Debian gives a node 127.0.1.1 for its own name: rank 0 listened where no other node could reach it."""
    call = RollCall("127.0.1.1")
    try:
        assert call._listener.getsockname()[0] == "0.0.0.0"
        Presence("127.0.0.1", call.port, call.token, "a rank").leave()
    finally:
        call.close()


def settle(call: RollCall, count: int) -> None:
    """Until the roll has read everybody's name."""
    deadline = time.monotonic() + LIMIT_S
    while len(call._present) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _sleep(host: str, port: int, token: str) -> None:
    Presence(host, port, token, "the teacher's rank 1")
    time.sleep(60)


def test_a_killed_rank_is_named_to_all(heard: "queue.Queue[str]") -> None:
    call = roll(heard)
    rank(call, "the teacher's rank 0", heard)
    child = multiprocessing.get_context("spawn").Process(
        target=_sleep, args=(call.host, call.port, call.token)
    )
    child.start()
    settle(call, 2)
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    began = time.monotonic()
    found = both(heard, 2)
    assert time.monotonic() - began < 2.0
    assert {text.split(": ")[0] for text in found} == {"roll", "the teacher's rank 0"}
    assert all("the teacher's rank 1 has gone without a word" in text for text in found)
    child.join()


def test_a_failure_comes_with_its_reason(heard: "queue.Queue[str]") -> None:
    call = roll(heard)
    first, _ = rank(call, "a", heard), rank(call, "b", heard)
    settle(call, 2)
    first.fail("no such folder")
    assert both(heard, 2) == {"roll: a failed: no such folder", "b: a failed: no such folder"}


def test_the_roll_keepers_failure_reaches_the_others(heard: "queue.Queue[str]") -> None:
    call = roll(heard)
    rank(call, "a", heard)
    settle(call, 1)
    call.fail("the student's rank 0 failed: out of memory")
    assert both(heard, 1) == {"a: the student's rank 0 failed: out of memory"}


def test_farewells_are_no_losses(heard: "queue.Queue[str]") -> None:
    call = roll(heard)
    ranks = [rank(call, name, heard) for name in "ab"]
    settle(call, 2)
    ranks[0].leave()
    settle(call, 1)
    ranks[1].leave()
    call.close()
    time.sleep(0.1)
    assert heard.empty()


def test_the_end_is_told_and_waited_for(heard: "queue.Queue[str]") -> None:
    call = roll(heard)
    one = rank(call, "a", heard)
    settle(call, 1)
    began = time.monotonic()
    call.close(limit_s=0.2)
    assert time.monotonic() - began >= 0.2
    assert one.ended.wait(LIMIT_S)
    one.leave()
    time.sleep(0.1)
    assert heard.empty()


def test_a_stranger_is_turned_away(heard: "queue.Queue[str]") -> None:
    call = roll(heard)
    Presence(call.host, call.port, "wrong", "x", lambda reason: None)
    time.sleep(0.1)
    assert not call._present
    assert heard.empty()


def test_nobody_answers() -> None:
    call = RollCall("127.0.0.1")
    call.close(0)
    with pytest.raises(RunError, match="the teacher's rank 3: the student's first rank does not"):
        Presence("127.0.0.1", call.port, call.token, "the teacher's rank 3")
