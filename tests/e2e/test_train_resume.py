"""Killed, stopped and resumed: what a run directory holds afterwards."""

import signal
from pathlib import Path

import pytest

from tests.e2e.training import Pair, curve, lines, make_pair, make_run, started, train

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def whole(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    """The curves of the run that nothing interrupted."""
    found = train(make_run(tmp_path_factory.mktemp("whole") / "run", pair))
    return {key: curve(found, key) for key in ("loss", "grad_norm", "lr", "val_kl_to_teacher")}


def test_killed_run_goes_on_bit_for_bit(pair: Pair, whole, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pair)
    with started(run) as job:
        job.until(lambda: len(curve(lines(run), "loss")) >= 5)
        job.kill()
    before = lines(run)
    assert [line["step"] for line in before if "loss" in line][:5] == [1, 2, 3, 4, 5]
    after = train(run, attempt=2)
    assert after[: len(before)] == before  # nothing that was written is lost
    second = [line for line in after if line["attempt"] == 2]
    assert {line["step"] for line in second if "loss" in line} >= {6}
    assert min(line["step"] for line in second) > 2  # it did not begin anew
    for key, expected in whole.items():
        assert curve(after, key) == expected, key


def test_torn_checkpoint_is_passed_over(pair: Pair, whole, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pair)
    checkpoints = run / "checkpoints"
    with started(run) as job:
        job.until((checkpoints / "step_0000004-unfinished").exists)
        job.kill()  # in the middle of saving the second checkpoint
    assert (checkpoints / "step_0000004-unfinished").exists()
    after = train(run, attempt=2)
    assert min(line["step"] for line in after if line["attempt"] == 2) == 3
    assert curve(after, "loss") == whole["loss"]
    assert [path.name for path in checkpoints.iterdir()] == ["step_0000006"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_the_step_at_hand(pair: Pair, whole, tmp_path: Path, number) -> None:
    run = make_run(tmp_path / "run", pair, train__checkpoint_interval=100)
    with started(run) as job:
        job.until(lambda: bool(lines(run)))
        job.signal(number, rank=0)
        assert job.wait() == [75]
    last = max(curve(lines(run), "loss"))
    assert last < 6
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step_{last:07d}"]
    after = train(run, attempt=2)
    assert curve(after, "loss") == whole["loss"]
    assert curve(after, "grad_norm") == whole["grad_norm"]


def test_signal_on_one_rank_stops_all(pair: Pair, whole, tmp_path: Path) -> None:
    layout = {"student__parallel": {"tensor": 2}, "train__checkpoint_interval": 100}
    run = make_run(tmp_path / "run", pair, **layout)
    with started(run, world=2) as job:
        job.until(lambda: bool(lines(run)))
        job.signal(signal.SIGTERM, rank=1)
        assert job.wait() == [75, 75]
    after = train(run, world=2, attempt=2)
    assert curve(after, "loss") == pytest.approx(whole["loss"], rel=1e-4)


def test_finished_run_does_nothing(pair: Pair, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", pair, train__steps=2)
    done = train(run)
    assert train(run, attempt=2) == done
