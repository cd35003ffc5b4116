"""The exporter: what it tells of a run's growing files, and that Prometheus can read it."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ekd_nemo.errors import UserError
from ekd_nemo.records.jsonl import JsonlStore
from ekd_nemo.records.lines import (
    CounterLine,
    DeviceLine,
    Line,
    PhaseBegin,
    PhaseEnd,
    PowerLine,
    StateLine,
    StepMark,
)
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.exporter import RunsCollector, serving
from ekd_nemo.telemetry.follow import Follower
from ekd_nemo.telemetry.live import LiveRun
from tests.unit.telemetry.conftest import wait_for

DASHBOARD = Path(__file__).parents[3] / "slurm" / "grafana-dashboard.json"
S = 10**9
BEGIN_NS = time.time_ns() - 100 * S


def stamp(t_s: float) -> dict[str, Any]:
    t_ns = round(t_s * S)
    return {"node": "n", "boot_id": "b", "t_mono_ns": t_ns, "t_wall_ns": BEGIN_NS + t_ns}


def measured(kind: type, t_s: float, uuid: str = "GPU-a", **values: Any) -> Line:
    common = {"uuid": uuid, "meter": "nvml", "source": "measured"}
    return kind(**stamp(t_s), sampler="s", **common, **values)


def device(uuid: str, role: str = "accelerator") -> Line:
    return measured(
        DeviceLine, 0, uuid, name="H100", device_kind="gpu", role=role, covers="the board"
    )


def mark(kind: type, t_s: float, rank: int = 0, **values: Any) -> Line:
    parallel = {"tensor": rank % 2, "data": rank // 2}
    return kind(
        **stamp(t_s), rank=rank, attempt=1, uuids=[f"GPU-{'ab'[rank % 2]}"], parallel=parallel,
        **values,
    )  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "runs" / "r")


def write(path: Path, lines: list[Line]) -> None:
    with JsonlStore(path) as store:
        store.append(lines)


def powers(begin_s: float, end_s: float, watts: float, uuid: str = "GPU-a") -> list[Line]:
    ticks = range(round(10 * begin_s), round(10 * end_s) + 1)
    return [measured(PowerLine, t / 10, uuid, p_avg_mw=round(1000 * watts)) for t in ticks]


def test_rates_and_phases_of_the_last_minute(run: RunDir) -> None:
    live = LiveRun(run)
    live.refresh()  # nothing is there yet
    write(
        run.power("n"),
        [
            *(device("GPU-a"), device("GPU-b"), device("CPU-n", "host")),
            *(*powers(0, 30, 300), *powers(0, 30, 100, "GPU-b"), *powers(0, 30, 77, "CPU-n")),
        ],
    )
    for rank in (0, 1):
        steps = [mark(StepMark, 5 * n, rank, step=n, tokens=1000) for n in range(1, 6)]
        begin = mark(PhaseBegin, 1, rank, phase="student_train")
        inner = [mark(PhaseBegin, 26, rank, phase="eval"), mark(PhaseEnd, 29, rank, phase="eval")]
        write(run.marks(rank), [begin, *steps, *inner])
    live.refresh()
    rates = live.rates()
    assert rates is not None
    # one replica of two tensor ranks: its tokens count once, the energy of both boards is in it
    assert rates[0] == pytest.approx(4 * 1000 / 20)
    assert rates[1] == pytest.approx(400 * 20 / 4000, rel=0.01)  # edges fall between samples
    energy = live.devices["n", "GPU-a"].phase_energy_j
    assert energy["", "idle"] == pytest.approx(300, rel=0.15)
    assert energy["0", "eval"] == pytest.approx(900, rel=0.05)
    assert energy["0", "student_train"] == pytest.approx(300 * 26, rel=0.01)
    assert live.ranks[1].phase == "student_train"
    more = [mark(StepMark, 25 + n, step=5 + n, tokens=10) for n in range(1, 70)]
    write(run.marks(0), more)
    live.refresh()
    assert live.ranks[0].step == 74
    assert len(live.ranks[0].window) <= 62


def test_a_new_attempt_starts_its_phases_anew(run: RunDir) -> None:
    again = PhaseBegin(**stamp(9), rank=0, attempt=2, uuids=["GPU-a"], parallel={}, phase="prerun")
    write(run.marks(0), [mark(PhaseBegin, 1, phase="student_train"), again])
    live = LiveRun(run)
    live.refresh()
    assert live.ranks[0].phases == ["prerun"]


def test_what_an_attempt_elsewhere_left_is_not_taken_for_what_runs_now(run: RunDir) -> None:
    """Requeued with half the ranks on a node whose name sorts first; the exporter is started only then."""
    old = {"node": "z", "boot_id": "bz"}
    for rank in range(4):
        begin = replace(mark(PhaseBegin, 1, rank, phase="student_train"), **old)
        steps = [replace(mark(StepMark, 2 * n, rank, step=n, tokens=9), **old) for n in (1, 2, 3)]
        write(run.marks(rank), [begin, *steps])
    write(run.power("n"), [device("GPU-a"), *powers(60, 90, 300)])
    for rank in (0, 1):
        begin = replace(mark(PhaseBegin, 60, rank, phase="student_train"), attempt=2)
        steps = [mark(StepMark, 60 + 5 * n, rank, step=2 + n, tokens=100) for n in range(1, 6)]
        write(run.marks(rank), [begin, *(replace(step, attempt=2) for step in steps)])
    live = LiveRun(run)
    live.refresh()
    assert [rank.rank for rank in live.working()] == [0, 1]
    assert (live.ranks[0].step, live.ranks[0].phases) == (7, ["student_train"])
    assert live.ranks[0].tokens == 3 * 9 + 5 * 100
    assert live.rates() == (pytest.approx(400 / 20), pytest.approx(300 * 20 / 400, rel=0.01))


def test_rates_end_with_the_steps(run: RunDir) -> None:
    """An evaluation of an hour follows."""
    live = LiveRun(run)
    write(run.marks(0), [mark(StepMark, 5 * n, step=n, tokens=100) for n in range(1, 6)])
    write(run.power("n"), [device("GPU-a"), *powers(0, 80, 300)])
    live.refresh()
    assert live.rates() is not None
    write(run.power("n"), powers(81, 140, 300))
    live.refresh()
    assert live.rates() is None
    write(run.power("n"), powers(140, 800, 300))
    live.refresh()
    assert len(live.devices["n", "GPU-a"].window) <= 610


def test_a_file_that_is_packed_while_it_is_looked_at(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler renames and removes parts at any moment: between a listing and a look, or behind an open file."""
    write(run.power("n"), [device("GPU-a"), *powers(0, 1, 5)])
    follower, path = Follower(run.power("n")), run.power("n")
    opened = Path.open

    def rolled(self: Path, mode: str = "r") -> Any:
        file: Any = opened(self, mode)
        if self == path:
            self.unlink()
        return file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", rolled)
        assert len(follower.new_lines()) == 12
    collector = RunsCollector(run.path)
    monkeypatch.setattr(collector, "_files", lambda: [path])
    assert list(collector.collect())


def test_a_follower_tells_each_line_once_and_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "power-n.jsonl"
    follower = Follower(path)
    assert follower.new_lines() == []
    first, second = powers(0, 0.1, 5)
    write(path, [first])
    text = path.read_text()
    assert follower.new_lines() == [first]
    assert follower.new_lines() == []
    write(path, [second])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert follower.new_lines() == []
    with path.open("ab") as file:
        file.write(whole[-20:] + b"junk\n")
    assert follower.new_lines() == [second]
    assert follower.skipped == 1
    path.write_text(text)  # shorter: another file under the same name
    assert follower.new_lines() == [first]


def test_of_a_long_file_only_its_ends_are_read_first(tmp_path: Path) -> None:
    path = tmp_path / "power-n.jsonl"
    lines = [device("GPU-a"), *powers(0, 100, 5)]
    write(path, lines)
    follower = Follower(path, ends_bytes=2000)
    told = follower.new_lines()
    assert told[0] == lines[0]
    assert told[-1] == lines[-1]
    assert 10 < len(told) < 20
    assert follower.skipped == 0


def scrape(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_what_is_scraped(run: RunDir) -> None:
    now_s = (time.time_ns() - BEGIN_NS) / S
    write(
        run.power("n"),
        [
            device("GPU-a"),
            device('GPU-"odd\\'),
            *powers(now_s - 5, now_s, 250),
            measured(CounterLine, now_s, e_mj=5_000_000, cause="period"),
            measured(StateLine, now_s, util_pct=87),
            measured(PowerLine, now_s - 60, 'GPU-"odd\\', p_avg_mw=1000),  # stale
        ],
    )
    begin = mark(PhaseBegin, now_s - 5, phase="student_train")
    steps = [mark(StepMark, now_s - 4 + n, step=n, tokens=500) for n in range(4)]
    write(run.marks(0), [begin, *steps])
    with serving(run.path.parent, host="127.0.0.1", port=0) as port:
        found = scrape(port)
    labels = {"run": "r", "node": "n", "uuid": "GPU-a", "meter": "nvml", "source": "measured"}
    labels["role"] = "accelerator"
    assert found["ekd_power_watts"] == [(labels, 250.0)]  # the stale one is left out, not 0
    assert found["ekd_energy_joules_total"] == [(labels, 5000.0)]
    assert found["ekd_utilisation_percent"] == [(labels, 87.0)]
    assert "ekd_temperature_celsius" not in found
    ages = {labels["uuid"]: value for labels, value in found["ekd_sample_age_seconds"]}
    assert ages['GPU-"odd\\'] > 59
    phase = {"run": "r", "node": "n", "rank": "0", "uuid": "GPU-a", "phase": "student_train"}
    assert found["ekd_rank_phase"] == [(phase, 1.0)]
    assert found["ekd_step"][0][1] == 3
    assert found["ekd_tokens_per_second"] == [({"run": "r"}, pytest.approx(500, rel=0.01))]
    assert found["ekd_energy_per_token_joules"] == [({"run": "r"}, pytest.approx(0.5, rel=0.1))]


def test_an_address_in_use_and_a_missing_folder_are_told(tmp_path: Path) -> None:
    with (
        serving(tmp_path, host="127.0.0.1", port=0) as port,
        pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"),
        serving(tmp_path, host="127.0.0.1", port=port),
    ):
        pass
    with (
        pytest.raises(UserError, match="no such directory"),
        serving(tmp_path / "x", host="127.0.0.1", port=0),
    ):
        pass


@pytest.fixture
def served(run: RunDir) -> Iterator[int]:
    """`ekd telemetry serve` beside a run that is being recorded; its port."""
    ekd = [sys.executable, "-m", "ekd_nemo", "telemetry"]
    options = ["--runs", str(run.path.parent), "--run-id", "r", "--meter", "estimate"]
    recorder = subprocess.Popen([*ekd, "record", *options, "--", "sleep", "60"])
    wait_for(run.power_files)
    server = subprocess.Popen(
        [*ekd, "serve", str(run.path.parent), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield int(server.stdout.readline().rsplit(":", 1)[1].split("/")[0])
    finally:
        for process in (server, recorder):
            process.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
        recorder.wait(20)


def test_serve_beside_a_recording(served: int) -> None:
    wait_for(lambda: "ekd_power_watts" in scrape(served))
    found = scrape(served)
    assert {labels["source"] for labels, _ in found["ekd_power_watts"]} == {"estimated"}
    assert {labels["phase"] for labels, _ in found["ekd_rank_phase"]} == {"student_train"}


def test_the_dashboard_asks_for_what_is_served(tmp_path: Path) -> None:
    asked = {name for text in dashboard_expressions() for name in re.findall(r"ekd_\w+", text)}
    assert len(asked) >= 10
    families = RunsCollector(tmp_path).collect()
    served = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    assert asked <= served


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus in PATH (Debian: prometheus)"
)
def test_a_real_prometheus_scrapes_it(served: int, tmp_path: Path) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: ekd, static_configs: [{{targets: ['127.0.0.1:{served}']}}]}}]\n"
    )
    port = free_port()
    prometheus = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: '"estimated"' in ask(port, "ekd_power_watts"))
        # power by rank and phase is a join: labels that change would make a new series each time
        joined = "ekd_rank_phase * on (run, node, uuid) group_left () ekd_power_watts"
        (found,) = json.loads(ask(port, joined))["data"]["result"]
        assert float(found["value"][1]) > 0
        named = {"run": "r", "rank": "0", "phase": "student_train"}
        assert named.items() <= found["metric"].items()
        assert {"node", "uuid"} <= found["metric"].keys()
        for expression in dashboard_expressions():
            answer = json.loads(ask(port, re.sub(r"\$(run|node)", ".*", expression)))
            assert answer["status"] == "success", answer
    finally:
        prometheus.terminate()
        prometheus.wait(20)


def ask(port: int, query: str) -> str:
    """What Prometheus answers to a query, as JSON; nothing while it does not listen yet."""
    return fetch(f"http://127.0.0.1:{port}/api/v1/query?{urlencode({'query': query})}")


def dashboard_expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read().decode()
    except OSError:  # not listening yet
        return ""
