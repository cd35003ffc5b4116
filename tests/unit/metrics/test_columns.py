"""Bulk reading gives what the typed reader gives, of good files, hostile ones and segments."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ekd_nemo.errors import DataError
from ekd_nemo.metrics import columns
from ekd_nemo.metrics.ledger import build_ledger, ledger_of_run
from ekd_nemo.metrics.mark_lines import RankKey, Row, _key_of, _row_of, read_marks
from ekd_nemo.metrics.series import SeriesKey, Telemetry, read_telemetry
from ekd_nemo.metrics.states import states_of
from ekd_nemo.records.jsonl import ReadReport, read_lines
from ekd_nemo.records.lines import CounterLine, DeviceLine, HostLine, MarkLine, PowerLine, StopLine
from ekd_nemo.records.parse import encode
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.records.segments import Segment, pack
from ekd_nemo.telemetry.rolling import pack_part
from ekd_nemo.telemetry.verify import verify_run
from tests.cases import PATIENCE_S, cases
from tests.unit.metrics.synthetic import make_run

pytestmark = pytest.mark.timeout(PATIENCE_S)
WHERE = {"node": "n", "boot_id": "b", "t_mono_ns": 5, "t_wall_ns": 6, "sampler": "s"}
OF_U = {"uuid": "u", "meter": "m", "source": "measured"}
GOOD = json.loads(encode(PowerLine(**WHERE, **OF_U, p_avg_mw=7)))
COUNTER = json.loads(encode(CounterLine(**WHERE, **OF_U, e_mj=9, cause="period")))


def by_lines(path: Path) -> tuple[Counter[tuple[object, ...]], ReadReport]:
    """Samples and report of the typed reader."""
    report = ReadReport()
    found: Counter[tuple[object, ...]] = Counter()
    for line in read_lines(path, report):
        if isinstance(line, PowerLine | CounterLine | DeviceLine):
            key = SeriesKey(line.uuid, line.boot_id, line.sampler, line.node)
            for figure in ("p_avg_mw", "p_inst_mw", "e_mj"):
                value = getattr(line, figure, None)
                if value is not None:
                    found[key, figure, line.t_mono_ns, value] += 1
    return found, report


def in_bulk(telemetry: Telemetry) -> Counter[tuple[object, ...]]:
    return Counter(
        (key, figure, at, value)
        for key, series in telemetry.series.items()
        for figure in ("p_avg_mw", "p_inst_mw", "e_mj")
        for at, value in zip(*(column.tolist() for column in series.samples(figure)), strict=True)
    )


def same(path: Path) -> ReadReport:
    """Check both readers against each other; returns the report."""
    expected, report = by_lines(path)
    telemetry = read_telemetry([path])
    assert in_bulk(telemetry) == expected
    got = telemetry.report
    assert (got.lines, got.torn, got.bad) == (report.lines, report.torn, report.bad)
    assert [fault.split(": ")[0] for fault in got.faults] == [
        f.split(": ")[0] for f in report.faults
    ]
    return report


def test_a_real_file_is_read_as_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "r-s1")
    monkeypatch.setattr(columns, "BLOCK_BYTES", 20_000)  # many blocks
    typed = []
    monkeypatch.setattr(columns, "_typed", lambda *_: typed.append(1) or [])
    (path,) = run.power_files()
    assert same(path).bad == 0
    assert not typed


ODD = st.sampled_from([
    None, True, False, -1, 0, 1, 1.0, 1.5, 2**63 - 1, 2**63, 1e300, "", "x", "7", [], [1], {}, {"a": 1},
    "n" * 5000, "measured", "power", "counter", "é\n\t\"",
])  # fmt: skip


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line: good, with odd values, with keys gone or doubled, torn, or not JSON at all."""
    record = dict(draw(st.sampled_from([GOOD, COUNTER])))
    for name in draw(st.lists(st.sampled_from(list(record)), max_size=2)):
        record[name] = draw(ODD)
    for name in draw(st.lists(st.sampled_from(list(record)), max_size=1)):
        record.pop(name)
    text = json.dumps(record).encode()
    kind = draw(st.integers(0, 12))
    if kind == 0:
        return text[: draw(st.integers(0, len(text)))]
    if kind == 1:
        return text + text
    if kind == 2:
        return draw(st.binary(max_size=30)).replace(b"\n", b"")
    if kind == 3:
        return text[:-1] + b',"t_mono_ns":77}'
    if kind == 4:
        return b"  " + text + b" \r"
    return text


@cases(200)
@given(st.lists(lines(), max_size=6), st.booleans())
@example([b"null"], False)  # these two crashed Arrow's JSON reader, and Python with it
@example([b"null}"], True)
def test_hostile_files_are_read_alike(tmp_path_factory, found: list[bytes], ended: bool) -> None:
    path = tmp_path_factory.mktemp("f") / "power-n.jsonl"
    path.write_bytes(b"\n".join(found) + (b"\n" if ended else b""))
    same(path)


@st.composite
def mark_lines(draw: st.DrawFn) -> bytes:
    """A line as the marks API writes it; or another order, odd values, garbage around it, torn, doubled."""
    head, body = draw(st.sampled_from(BODIES))
    number = draw(
        st.sampled_from(
            [
                "5",
                "0",
                "05",
                "-1",
                "1.0",
                "1e3",
                "9223372036854775807",
                "9223372036854775808",
                "null",
            ]
        )
    )
    at = draw(st.sampled_from(["7", "1790000000000000000", number]))
    tail = draw(st.sampled_from(TAILS))
    body = body.replace("N", draw(st.sampled_from(["3", number])))
    text = f'{{"schema_version":1,"kind":"{head}","t_mono_ns":{at},"t_wall_ns":8,{body},{tail}'
    kind = draw(st.integers(0, 14))
    if kind == 0:
        return text[: draw(st.integers(0, len(text)))].encode()
    if kind == 1:
        return draw(
            st.sampled_from(
                [b"x" + text.encode(), text.encode() + b" ", text.encode() * 2, b"", b" \r", b"[]"]
            )
        )
    if kind == 2 and text.endswith("}}"):
        return json.dumps(dict(sorted(json.loads(text).items())) if number == "5" else {}).encode()
    return text.encode()


BODIES = [
    ("phase_begin", '"phase":"student_train"'), ("phase_end", '"phase":"student_train"'),
    ("phase_end", '"phase":"lunch"'),
    ("step", '"step":N,"tokens":4096,"tokens_valid":4000'), ("step", '"step":4,"tokens":N,"tokens_valid":null'),
    ("step", '"step":4'), ("span", '"phase":"teacher_forward","step":4,"duration_ns":N'), ("stop", '"phase":"eval"'),
    ("phase_begin", '"phase":"eval","phase":"ept"'), ("step", '"rank":1,"step":1,"tokens":1,"tokens_valid":1'),
]  # fmt: skip
_TAIL = '"rank":R,"attempt":1,"node":"n","boot_id":"b","uuids":["u","v"],"parallel":{"tensor":0,"data":2}}'
TAILS = [_TAIL.replace("R", "0")] * 8 + [
    _TAIL.replace("R", "1"), _TAIL.replace("R", "-1"), _TAIL.replace("R", "null"), _TAIL[:-1] + ',"t_mono_ns":99}',
    _TAIL.replace("R", "0").replace('["u","v"]', "[1]"), _TAIL.replace("R", "0").replace("2}}", "2}"),
    _TAIL.replace("R", "0").replace('{"tensor":0,"data":2}', "{}"),
]  # fmt: skip


@cases(200)
@given(st.lists(mark_lines(), max_size=8), st.booleans())
def test_marks_in_their_fixed_form_are_read_as_by_the_typed_reader(
    tmp_path_factory, found: list[bytes], ended: bool
) -> None:
    path = tmp_path_factory.mktemp("f") / "marks-0.jsonl"
    data = b"\n".join(found) + (b"\n" if ended else b"")
    path.write_bytes(data)
    plain, report = ReadReport(), ReadReport()
    expected: dict[RankKey, set[Row]] = defaultdict(set)
    for line in read_lines(path, plain):
        if isinstance(line, MarkLine):
            expected[_key_of(line)].add(_row_of(line))
    got = read_marks([path], report)
    assert (report.lines, report.torn, report.bad) == (plain.lines, plain.torn, plain.bad)
    assert got.keys() == expected.keys()
    for key, columns_of_key in got.items():
        rows = set(zip(*(column.tolist() for column in columns_of_key), strict=True))
        assert rows <= expected[key]
        # Lines of one time, kind, phase and step are one line, even where they differ in tokens.
        assert {row[:4] for row in rows} == {row[:4] for row in expected[key]}
        assert columns_of_key.t_ns.tolist() == sorted(columns_of_key.t_ns.tolist())


def test_an_endless_line_is_one_bad_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "BLOCK_BYTES", 1 << 20)
    path = tmp_path / "power-n.jsonl"
    good = json.dumps(GOOD).encode() + b"\n"
    path.write_bytes(good + b'{"a":"' + b"x" * (5 << 20) + b"\n" + good)
    telemetry = read_telemetry([path])
    assert (telemetry.report.lines, telemetry.report.torn, telemetry.report.bad) == (2, 1, 0)
    assert telemetry.report.faults[0].startswith(f"{path}:2: ")


def test_a_packed_file_holds_every_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-s1")
    (path,) = run.power_files()
    stop = StopLine(
        **WHERE, reason="signal", cpu_user_us=1, cpu_system_us=1, startup_cpu_us=1, driver_wall_us=1,
        driver_cpu_us=1, max_rss_kib=1, ticks=1, ticks_missed=0, repeats_dropped=0,
    )  # fmt: skip
    with path.open("a") as file:
        file.write(encode(HostLine(**WHERE, cpu_util_pct=12.5, ram_used_bytes=2**40)) + "\n")
        file.write(encode(stop) + '\nnonsense\n{"torn')
    expected, report = by_lines(path)
    target = path.with_suffix(".parquet")
    assert pack(path, target) == 2 + 3  # two devices, stop, nonsense, torn
    telemetry = read_telemetry([target])
    assert in_bulk(telemetry) == expected
    assert (telemetry.report.lines, telemetry.report.torn, telemetry.report.bad) == (
        report.lines,
        report.torn,
        report.bad,
    )
    segment = Segment(target)
    (host,) = [n for n, s in enumerate(segment.series) if s.kind == "host"]
    assert segment.read(host, ["cpu_util_pct", "ram_used_bytes"]).to_pylist() == [
        {"cpu_util_pct": 12.5, "ram_used_bytes": 2**40}
    ]
    assert target.stat().st_size < path.stat().st_size / 20


def test_a_run_costs_the_same_packed_or_not_or_both(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-s1")
    expected = ledger_of_run(run)
    (path,) = run.power_files()
    pack(path, run.telemetry / "power-n1.0.parquet")
    assert ledger_of_run(run).rows == expected.rows  # as after a crash between packing and removing
    path.unlink()
    assert ledger_of_run(run).rows == expected.rows


def test_a_part_packed_since_it_was_listed_is_read_from_its_segment(tmp_path: Path) -> None:
    """A summary of a run that goes on: its sampler packs what it likes."""
    run = make_run(tmp_path, "r-s1")
    rows = ledger_of_run(run).rows
    listed = run.power_files()
    expected = states_of(ledger_of_run(run), listed, np.arange(20.0))
    (part,) = listed
    segment = pack_part(part)
    found = read_telemetry(listed)
    assert build_ledger(found, read_marks(run.marks_files(), ReadReport())).rows == rows
    assert states_of(ledger_of_run(run), listed, np.arange(20.0)).devices == expected.devices
    both = read_telemetry([*listed, segment])
    assert both.report.lines == found.report.lines
    segment.unlink()
    with pytest.raises(FileNotFoundError, match="no segment in its place"):
        read_telemetry(listed)


def test_a_part_packed_while_a_record_is_verified_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "r-s1")
    before = verify_run(run).devices
    (part,) = listed = run.power_files()
    pack_part(part)
    monkeypatch.setattr(RunDir, "power_files", lambda _: listed)
    monkeypatch.setattr(RunDir, "segment_files", lambda _: [])
    found = verify_run(run).devices
    assert [len(device.times_ns) for device in found] == [len(d.times_ns) for d in before]


def test_packing_leaves_nothing_half_made(tmp_path: Path) -> None:
    path = tmp_path / "power-n.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(OSError, match="nowhere"):
        pack(path, tmp_path / "nowhere" / "power-n.parquet")
    pack(path, tmp_path / "power-n.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["power-n.jsonl", "power-n.parquet"]


def test_what_is_no_segment_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "power-n.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"power-n\.parquet: not a segment"):
        Segment(path)


def test_counters_keep_all_their_digits(tmp_path: Path) -> None:
    path = tmp_path / "power-n.jsonl"
    path.write_text(json.dumps(COUNTER | {"e_mj": 2**53 + 1}) + "\n" + json.dumps(GOOD) + "\n")
    (series,) = read_telemetry([path]).series.values()
    assert series.samples("e_mj").value.dtype == np.int64
    assert series.samples("e_mj").value.tolist() == [2**53 + 1]
