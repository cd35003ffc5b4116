"""What is asked of the benchmark's worker and what is kept of its answers; the worker's part is replayed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.errors import RunError
from ekd_nemo.evals import ept
from ekd_nemo.evals.ept import LOG, points_of, read_measured, run_ept
from ekd_nemo.evals.ept_request import EptJob, EptMeasured, EptPoint, EptRequest, EptSettings
from ekd_nemo.evals.ept_request import EptWindow as Window
from ekd_nemo.evals.prompts import PromptSource
from ekd_nemo.records.rundir import RunDir

POINT = EptPoint(mode="fixed", batch_size=1, input_tokens=8, new_tokens=4)
OTHER = POINT.model_copy(update={"batch_size": 2})
PROMPTS = PromptSource("p.txt", ("a", "b", "c"))
SETTINGS = EptSettings(requests=3)


def measured(job: str, point: EptPoint) -> EptMeasured:
    window = Window(start_ns=0, end_ns=6 * 10**9, input_tokens=80, output_tokens=40, requests=10)
    return EptMeasured(
        job=job,
        point=point,
        engine="transformers",
        engine_version="4",
        dtype="float32",
        uuids=("CPU-0",),
        boot_id="b",
        prompts_sha256="p",
        repeats=(window,),
    )


class Replay:
    """Takes the place of the worker: every point gives one window, until `fails_on`."""

    def __init__(self, fails_on: EptPoint | None = None) -> None:
        self.fails_on = fails_on
        self.request: EptRequest | None = None

    def __call__(
        self, argv: object, request: Path, log: Path, on_event: Callable[..., Any], *, offline: Any
    ) -> None:
        self.request = EptRequest.model_validate_json(request.read_bytes())
        for job in self.request.jobs:
            on_event({"event": "model", "job": job.name, "model": job.model})
            for point in job.points:
                on_event({"event": "point", "job": job.name, "point": point.words})
                if point == self.fails_on:
                    raise RunError("the worker died")
                found = measured(job.name, point).model_dump(mode="json")
                on_event({"event": "measured", "found": found})


def run(folder: Path, replay: Replay, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(ept, "run_harness", replay)
    job = EptJob(name="student", model="m", points=(POINT, OTHER))
    run_ept(RunDir(folder), [job], SETTINGS, PROMPTS, ["CPU-0"], 1, lambda _: None)
    return RunDir(folder)


def test_the_sweep_is_every_pair_of_lengths_at_every_batch_size() -> None:
    points = points_of([1, 4], [8, 16], [4], natural=True)
    fixed = [(p.input_tokens, p.batch_size) for p in points if p.mode == "fixed"]
    assert fixed == [(8, 1), (8, 4), (16, 1), (16, 4)]
    assert [p.batch_size for p in points if p.mode == "natural"] == [1, 4]
    assert all(p.mode == "fixed" for p in points_of([1], [8], [4], natural=False))


def test_points_are_kept_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = Replay()
    found = read_measured(run(tmp_path, replay, monkeypatch))
    assert [one.point for one in found] == [POINT, OTHER]
    assert replay.request is not None
    assert sorted(replay.request.texts or ()) == ["a", "b", "c"]
    assert list((tmp_path / "logs").glob(".ept-*")) == []


def test_a_worker_that_dies_half_way_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="the worker died"):
        run(tmp_path, Replay(fails_on=OTHER), monkeypatch)
    assert [one.point for one in read_measured(RunDir(tmp_path))] == [POINT]


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(tmp_path, Replay(), monkeypatch)
    path = folder.logs / LOG
    path.write_text(path.read_text()[:-30])
    assert [one.point for one in read_measured(folder)] == [POINT]


def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logs" / LOG).mkdir(parents=True)
    with pytest.raises(RunError, match="results cannot be stored") as caught:
        run(tmp_path, Replay(), monkeypatch)
    assert "\n" not in str(caught.value)
