"""Readers of growing and foreign telemetry: follower, exporter's view, verify, replay, dcgm and sysfs pages."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.meter.dcgm import _parse
from ekd_nemo.meter.protocol import MeterUnavailableError
from ekd_nemo.meter.replay import ReplayMeter
from ekd_nemo.records.clock import now
from ekd_nemo.records.identity import write_identity
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.telemetry.follow import Follower
from ekd_nemo.telemetry.live import LiveRun
from ekd_nemo.telemetry.verify import verify_run
from tests.cases import PATIENCE_S, cases
from tests.unit.metrics.synthetic import Recorder, identity

pytestmark = pytest.mark.timeout(PATIENCE_S)
HOSTILE = [
    b"", b"\0", b"\xff\xfe{", b"null", b"[]", b"{}", b'{"kind":"power"}', b"{" * 300, b'"', b"[" * 50_000,
    b'{"schema_version":1,"kind":"event","event":"lunch"}', b'{"schema_version":1,"kind":"step","step":NaN}',
]  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    run = RunDir(tmp_path_factory.mktemp("hostile") / "r-s1")
    write_identity(run, identity("r-s1"))
    yield run
    shutil.rmtree(run.path)


@pytest.fixture(scope="module")
def lines() -> dict[str, list[bytes]]:
    """Twenty seconds of one board and one rank, by file."""
    from ekd_nemo.records.parse import encode

    recorder = Recorder()
    recorder.device("GPU-0")
    recorder.sample("GPU-0", 0, 20, lambda _: 300.0, period_s=1.0)
    recorder.count("GPU-0", 0, 20, lambda t: 300 * t)
    recorder.phase(0, "student_train", 1, 19)
    recorder.step(0, 10, 1, 100)
    files = {"power-n1.jsonl": recorder.telemetry, "marks-0.jsonl": recorder.ordered_marks(0)}
    return {name: [encode(one).encode() + b"\n" for one in found] for name, found in files.items()}


def mixed(lines: list[bytes], chance: random.Random) -> bytes:
    """The lines torn, doubled, reordered, with the wall clock stepped and garbage between them."""
    found = [*lines, *chance.choices(lines, k=chance.randint(0, 4))]
    if chance.random() < 0.5:
        chance.shuffle(found)
    for number, line in enumerate(found):
        if chance.random() < 0.1:
            record = json.loads(line)
            record["t_wall_ns"] = chance.randint(0, 2**63 - 1)
            found[number] = json.dumps(record).encode() + b"\n"
        elif chance.random() < 0.05:
            found[number] = line[: chance.randint(0, len(line))] + b"\n" * chance.randint(0, 1)
    for _ in range(chance.randint(0, 4)):
        found.insert(chance.randint(0, len(found)), chance.choice(HOSTILE) + b"\n")
    data = b"".join(found)
    return data[: chance.randint(0, len(data))] if chance.random() < 0.3 else data


def write(run: RunDir, lines: dict[str, list[bytes]], chance: random.Random) -> dict[Path, bytes]:
    shutil.rmtree(run.telemetry, ignore_errors=True)
    run.telemetry.mkdir()
    written = {run.telemetry / name: mixed(found, chance) for name, found in lines.items()}
    for path, data in written.items():
        path.write_bytes(data)
    return written


@cases(40)
@given(st.randoms(use_true_random=False))
def test_a_follower_tells_whole_lines_once_however_the_file_grows(
    scratch: RunDir, lines: dict[str, list[bytes]], chance: random.Random
) -> None:
    data = mixed(lines["power-n1.jsonl"], chance)
    path = scratch.path / "grows.jsonl"
    path.write_bytes(data)
    at_once = Follower(path)
    expected = at_once.new_lines()
    path.write_bytes(b"")
    follower, got = Follower(path), []
    begin = 0
    while begin < len(data):
        end = min(len(data), begin + chance.randint(1, 2000))
        with path.open("ab") as file:
            file.write(data[begin:end])
        got += follower.new_lines()
        begin = end
    assert got == expected
    assert follower.skipped == at_once.skipped


@cases(25)
@given(st.randoms(use_true_random=False))
def test_verify_and_the_exporters_view_survive_any_record_and_change_none(
    scratch: RunDir, lines: dict[str, list[bytes]], chance: random.Random
) -> None:
    written = write(scratch, lines, chance)
    verdict = verify_run(scratch)
    damaged = sum(report.torn + report.bad for report in verdict.files.values())
    assert not (damaged and verdict.is_whole)
    live = LiveRun(scratch)
    live.refresh()
    for device in live.devices.values():
        assert device.energy_j is None or device.energy_j >= 0
        assert all(energy_j >= 0 for energy_j in device.phase_energy_j.values())
    assert {path: path.read_bytes() for path in written} == written


@cases(25)
@given(st.randoms(use_true_random=False))
def test_a_replay_plays_any_record_or_refuses_it(
    scratch: RunDir, lines: dict[str, list[bytes]], chance: random.Random
) -> None:
    (path, *_) = write(scratch, lines, chance)
    try:
        meter = ReplayMeter(path, speed=1000.0)
    except MeterUnavailableError as error:
        assert str(path) in str(error)
        return
    for reading in [*meter.read_power(), *meter.read_counters(), *meter.read_state()]:
        assert reading.uuid == "GPU-0"


LABELS = st.sampled_from(
    [
        'UUID="GPU-a"',
        'UUID="GPU-b",GPU_I_ID="1"',
        'gpu="0"',
        'cpu="0"',
        'cpu="",cpucore="1"',
        "",
        "UUID=",
        '"',
        'UUID="\\q"',
    ]
)
NAMES = st.sampled_from(
    [
        "DCGM_FI_DEV_POWER_USAGE",
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "DCGM_FI_DEV_GPU_TEMP",
        "DCGM_FI_DEV_CPU_POWER_UTIL_CURRENT",
        "x",
        "# TYPE",
        "",
    ]
)
VALUES = st.sampled_from(["300.5", "0", "-1", "NaN", "+Inf", "1e400", "", "abc", "3 4 5", "9" * 40])


@cases(150)
@given(st.lists(st.tuples(NAMES, LABELS, VALUES), max_size=8))
def test_a_page_of_an_exporter_gives_finite_values_or_one_error(
    page: list[tuple[str, str, str]],
) -> None:
    text = "".join(f"{name}{{{labels}}} {value}\n" for name, labels, value in page)
    try:
        parsed = _parse(text, now(), "n1")
    except ValueError:
        return  # told as one read error beside the readings of the other meters
    for values in parsed.values.values():
        assert all(0 <= value < float("inf") for value in values.values())
