"""Where two worlds meet; what they do then is in tests/distributed."""

from pathlib import Path

import pytest

from ekd_nemo.teacher import joint
from ekd_nemo.teacher.joint import Seat


def test_a_rank_waits_in_the_store_as_long_as_at_the_meeting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its first message a teacher waits for a student that may still be loading."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    file = tmp_path / "logs" / "meeting.json"
    _, first, roll = joint._open(file)
    _, second, presence = joint._find(file, Seat("teacher", 0, 1, 1), None)
    limits = [each.timeout.total_seconds() for each in (first, second)]
    presence.leave()
    roll.close()
    assert limits == [joint.MEETING_LIMIT_S] * 2
