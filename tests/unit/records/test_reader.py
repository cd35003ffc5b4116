"""Lines written and read back; torn, cut, duplicated and hostile files."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.records.jsonl import (
    LINE_MAX_BYTES,
    JsonlStore,
    ReadReport,
    is_torn,
    read_lines,
    read_objects,
)
from ekd_nemo.records.lines import CounterLine, Line, PowerLine, StepMark
from ekd_nemo.records.parse import BadLineError, decode_object, encode, parse_object
from tests.cases import PATIENCE_S, cases

pytestmark = pytest.mark.timeout(PATIENCE_S)
SHARED = cases(100)
INTS = st.integers(0, 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
STAMP = {
    "node": TEXTS,
    "boot_id": TEXTS,
    "sampler": TEXTS,
    "t_mono_ns": INTS,
    "t_wall_ns": INTS,
    "uuid": TEXTS,
    "meter": TEXTS,
    "source": st.sampled_from(["measured", "estimated", "replayed"]),
}
POWER = st.builds(PowerLine, **STAMP, p_avg_mw=INTS | st.none(), t_driver_us=INTS | st.none())
COUNTER = st.builds(CounterLine, **STAMP, e_mj=INTS, cause=st.sampled_from(["mark", "stop"]))
STEP = st.builds(
    StepMark,
    **{key: STAMP[key] for key in ("node", "boot_id", "t_mono_ns", "t_wall_ns")},
    rank=INTS,
    attempt=INTS,
    uuids=st.lists(TEXTS, max_size=3),
    parallel=st.dictionaries(TEXTS, INTS, max_size=3),
    step=INTS,
    tokens=INTS,
    tokens_valid=INTS | st.none(),
)
LINES = st.lists(POWER | COUNTER | STEP, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)


def read(path: Path) -> tuple[list[Line], ReadReport]:
    report = ReadReport()
    return list(read_lines(path, report)), report


@SHARED
@given(LINES)
def test_what_is_written_is_read(tmp_path: Path, lines: list[Line]) -> None:
    path = tmp_path / "power-n.jsonl"
    path.unlink(missing_ok=True)
    with JsonlStore(path) as store:
        for line in lines:
            store.append([line])
    found, report = read(path)
    assert found == lines
    assert (report.lines, report.torn, report.bad) == (len(lines), 0, 0)


@SHARED
@given(LINES.filter(bool), st.data())
def test_a_cut_costs_one_line_and_appending_goes_on(
    tmp_path: Path, lines: list[Line], data: st.DataObject
) -> None:
    path = tmp_path / "power-n.jsonl"
    whole = "".join(encode(line) + "\n" for line in lines).encode()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    left = whole[:cut].count(b"\n")
    rest = whole[:cut].rsplit(b"\n", 1)[-1]
    if rest.endswith(b"}") and cut < len(whole) and whole[cut : cut + 1] == b"\n":
        left += 1  # only the newline is missing: the line is whole
    found, report = read(path)
    assert found == lines[:left]
    assert report.bad == 0
    assert report.torn == (1 if rest and len(found) == whole[:cut].count(b"\n") else 0)
    with JsonlStore(path) as store:
        store.append([lines[-1]])
    assert read(path)[0] == [*lines[:left], lines[-1]]


@pytest.mark.parametrize(
    ("line", "torn"),
    [
        (b'{"a": {"b": 1}', True),  # cut right behind an inner object
        (b'{"a": "}', True),
        (b'{"a": "\\"}', True),
        (b'{"a": {}, "b": ', True),
        (b'{"a": }', False),
        (b'{"a": "{"} }', False),
        (b"no object", False),
    ],
)
def test_an_object_never_closed_is_torn(line: bytes, torn: bool) -> None:
    assert is_torn(line) is torn


@SHARED
@given(LINES, st.lists(st.binary(max_size=60), max_size=4), st.randoms(use_true_random=False))
def test_hostile_bytes_are_counted_and_harm_no_other_line(
    tmp_path: Path, lines: list[Line], junk: list[bytes], shuffle: Any
) -> None:
    path = tmp_path / "power-n.jsonl"
    junk = [b"!" + part.replace(b"\n", b" ") for part in junk]
    good = [encode(line).encode() for line in lines]
    mixed = [*good, *good, *junk]  # duplicates stay: they are the ledger's to drop
    shuffle.shuffle(mixed)
    path.write_bytes(b"".join(part + b"\n" for part in mixed))
    found, report = read(path)
    assert len(found) == 2 * len(lines)
    assert report.bad == len(junk)
    assert report.torn == 0
    assert len(report.faults) == len(junk)


@SHARED
@given(POWER | COUNTER | STEP, JSON, st.data())
def test_a_changed_value_is_accepted_or_refused_never_a_traceback(
    line: Line, value: Any, data: st.DataObject
) -> None:
    raw = json.loads(encode(line))
    key = data.draw(st.sampled_from(sorted(raw)))
    raw[key] = value
    try:
        parsed = parse_object(raw)
    except BadLineError as error:
        assert "\n" not in str(error)
    else:
        assert all(getattr(parsed, f.name) == raw[f.name] for f in fields(parsed))


@SHARED
@given(st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_decode_or_are_refused(text: bytes) -> None:
    try:
        parse_object(decode_object(text))
    except BadLineError as error:
        assert str(error)


GOOD = '{"schema_version":1,"kind":"counter","node":"n","boot_id":"b","t_mono_ns":1,"t_wall_ns":2,'
GOOD += '"sampler":"s","uuid":"u","meter":"m","source":"measured","e_mj":5,"cause":"mark"'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.replace('"e_mj":5', '"e_mj":-5') + "}", "e_mj must be an integer from 0"),
        (GOOD.replace('"e_mj":5', '"e_mj":5.0') + "}", "e_mj must be an integer"),
        (GOOD.replace('"e_mj":5', '"e_mj":true') + "}", "e_mj must be an integer"),
        (GOOD.replace('"e_mj":5', '"e_mj":NaN') + "}", "NaN is not JSON"),
        (GOOD.replace('"e_mj":5', '"e_mj":1' + "0" * 5000) + "}", "not JSON"),
        (GOOD.replace('"e_mj":5', '"e_mj":9223372036854775808') + "}", "e_mj must be"),
        (GOOD.replace('"e_mj":5,', "") + "}", "e_mj is missing"),
        (GOOD.replace('"mark"', '"mood"') + "}", "cause must be one of start, period, mark, stop"),
        (GOOD.replace('"u"', r'"\ud800"') + "}", "uuid must be a text"),
        (GOOD.replace('"kind":"counter"', '"kind":"joules"') + "}", "kind must be one of start"),
        (GOOD.replace('_version":1', '_version":2') + "}", "schema_version must be 1"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "not a JSON object"),
    ],
)
def test_reasons(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "power-n.jsonl"
    path.write_text(f"{GOOD}}}\n{text}\n{GOOD}}}\n")
    found, report = read(path)
    assert len(found) == 2
    assert (report.torn, report.bad) == (0, 1)
    assert f"{path}:2: " in report.faults[0]
    assert reason in report.faults[0]


def test_keys_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "power-n.jsonl"
    path.write_text(GOOD + ',"colour":"green"}\n\n')
    assert read(path)[1] == ReadReport(lines=1)


def test_a_line_without_end_is_one_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "power-n.jsonl"
    path.write_text(f"{GOOD}}}\n" + "x" * (3 * LINE_MAX_BYTES) + f"\n{GOOD}}}\n")
    found, report = read(path)
    assert (len(found), report.bad, report.torn) == (2, 1, 0)


def test_plain_objects_are_read_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"step":1}\n{"step":\n7\n{"step":2}\n')
    report = ReadReport()
    assert list(read_objects(path, report)) == [{"step": 1}, {"step": 2}]
    assert (report.lines, report.torn, report.bad) == (2, 1, 1)
