"""Whole runs with torn, doubled, reordered, overlapping, clock-stepped and hostile lines: no traceback, same sums."""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.errors import EkdError
from ekd_nemo.metrics.energy import run_energy
from ekd_nemo.metrics.imports.ept import read_ept_benchmark
from ekd_nemo.metrics.imports.power_csv import read_power_csv
from ekd_nemo.metrics.imports.scores import read_scores
from ekd_nemo.metrics.ledger import Ledger, ledger_of_run
from ekd_nemo.metrics.ledger_store import read_ledger, write_ledger
from ekd_nemo.metrics.site import read_site
from ekd_nemo.metrics.summary import summarise
from ekd_nemo.metrics.training import read_training
from ekd_nemo.records.ept import read_ept
from ekd_nemo.records.identity import read_identity, write_identity
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.records.segments import Segment, pack
from tests.cases import PATIENCE_S, cases
from tests.unit.metrics.benchmarks import benchmark, entry
from tests.unit.metrics.synthetic import Recorder, identity, write_log

pytestmark = pytest.mark.timeout(PATIENCE_S)
WATTS = {0: 300.0, 1: 200.0}
HOSTILE = [
    b"", b"\0\0\0", b"\xff\xfe{", b"null", b"[]", b"{}", b'{"kind":"power"}', b"{" * 300, b'"', b"[" * 100_000,
    b'{"schema_version":1,"kind":"power","node":"n1","boot_id":"0123456789ab","t_mono_ns":-5,"t_wall_ns":1,'
    b'"sampler":"5a3b1e00","uuid":"GPU-0","meter":"nvml","source":"measured","p_avg_mw":1e999}',
    b'{"schema_version":2,"kind":"counter"}', b'{"schema_version":1,"kind":"step","step":NaN}', b"\xed\xa0\x80",
]  # fmt: skip


def scripted(node: str = "n1") -> Recorder:
    """Two boards at constant power over 30 s, four steps; sums are known in closed form."""
    recorder = Recorder(node=node)
    for rank, watts in WATTS.items():
        uuid = f"GPU-{rank}"
        recorder.device(uuid)
        recorder.sample(uuid, 0, 30, lambda _, w=watts: w, period_s=1.0)
        recorder.count(uuid, 0, 30, lambda t, w=watts: w * t)
        recorder.phase(rank, "prerun", 1, 5)
        recorder.phase(rank, "student_train", 6, 26)
        for step in range(4):
            recorder.step(rank, 10 + 5 * step, step + 1, 100)
    return recorder


class Plain:
    """The run as it was written: its lines by file, and its ledger; a failing case does not print them."""

    def __init__(self, run: RunDir, lines: dict[str, list[bytes]], ledger: Ledger) -> None:
        self.run, self.lines, self.ledger = run, lines, ledger


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Plain:
    run = RunDir(tmp_path_factory.mktemp("plain") / "r-s1")
    write_identity(run, identity("r-s1"))
    scripted().write(run)
    files = [*run.power_files(), *run.marks_files()]
    lines = {path.name: path.read_bytes().splitlines(keepends=True) for path in files}
    return Plain(run, lines, ledger_of_run(run))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    """A run directory whose telemetry each case writes anew."""
    run = RunDir(tmp_path_factory.mktemp("scratch") / "r-s1")
    write_identity(run, identity("r-s1"))
    yield run
    shutil.rmtree(run.path)


def write(run: RunDir, files: dict[str, bytes]) -> None:
    shutil.rmtree(run.telemetry, ignore_errors=True)
    run.telemetry.mkdir()
    for name, data in files.items():
        (run.telemetry / name).write_bytes(data)


def energy_j(ledger: Ledger) -> float:
    value = run_energy(ledger).e_run.value
    assert value is not None
    return value


def stepped(line: bytes, by_ns: int) -> bytes:
    """The same line with the wall clock set; time between samples is the monotonic clock's."""
    record = json.loads(line)
    record["t_wall_ns"] += by_ns
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def parts(name: str, lines: list[bytes], chance: random.Random) -> dict[str, bytes]:
    """The lines over one to three files as a sampler's rolling names them."""
    stem = name.removesuffix(".jsonl")
    cuts = sorted(chance.sample(range(len(lines) + 1), k=chance.randint(0, 2)))
    edges = [0, *cuts, len(lines)]
    pieces = [lines[a:b] for a, b in pairwise(edges)]
    if name.startswith("marks"):  # whoever copies marks may split them as well
        names = [f"{stem}{number}.jsonl" for number in range(len(pieces))]
    else:
        names = [f"{stem}.{number}.jsonl" for number in range(len(pieces))]
    return {name: b"".join(piece) for name, piece in zip(names, pieces, strict=True)}


@cases(25)
@given(st.randoms(use_true_random=False), st.booleans())
def test_sums_do_not_depend_on_order_copies_splitting_merging_wall_clock_and_garbage(
    plain: Plain, scratch: RunDir, chance: random.Random, packed: bool
) -> None:
    files: dict[str, bytes] = {}
    for name, lines in plain.lines.items():
        mixed = [
            stepped(line, chance.randint(0, 10**12)) if chance.random() < 0.2 else line
            for line in lines
        ]
        mixed += chance.choices(mixed, k=chance.randint(0, 10))
        chance.shuffle(mixed)
        for _ in range(chance.randint(0, 4)):
            mixed.insert(chance.randint(0, len(mixed)), chance.choice(HOSTILE) + b"\n")
        files |= parts(name, mixed, chance)
    write(scratch, files)
    if (
        packed
    ):  # some parts as segments, some as both, as after a crash between packing and removing
        for path in [p for p in scratch.power_files() if chance.random() < 0.7]:
            pack(path, path.with_suffix(".parquet"))
            if chance.random() < 0.7:
                path.unlink()
    got = ledger_of_run(scratch)
    assert got.rows == plain.ledger.rows
    assert energy_j(got) == energy_j(plain.ledger) == pytest.approx(25 * sum(WATTS.values()))


@cases(40)
@given(st.randoms(use_true_random=False))
def test_torn_files_and_overlapping_samplers_give_a_figure_within_its_bounds_or_a_reason(
    plain: Plain, scratch: RunDir, chance: random.Random
) -> None:
    files: dict[str, bytes] = {}
    for name, lines in plain.lines.items():
        data = b"".join(lines)
        if chance.random() < 0.7:
            data = data[: chance.randint(0, len(data))]  # killed, or the disk was full
        if chance.random() < 0.3:
            cut = chance.randint(0, len(data))
            data = data[:cut] + b"\n" + data[cut + chance.randint(0, 300) :]  # a hole in the middle
        files[name] = data
    if chance.random() < 0.5:  # a second sampler saw the same boards for a part of the time
        other = b"".join(plain.lines["power-n1.jsonl"]).replace(b"5a3b1e00", b"0ther000")
        files["power-n1.1.jsonl"] = other[chance.randint(0, len(other)) :]
    write(scratch, files)
    (run,) = summarise([scratch.path]).runs
    e_run = run.figures["e_run"]
    if e_run.value is None:
        assert e_run.reason
        return
    # the boards draw constant power: never more, over 30 s where the last phase's end is lost
    seconds = 30 if "unclosed_attempt" in run.flags else 25
    assert 0 <= e_run.value <= seconds * sum(WATTS.values()) * (1 + 1e-9)
    phases = [q.value for name, q in run.figures.items() if name.startswith("phase:")]
    assert sum(p for p in phases if p is not None) == pytest.approx(e_run.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["step", "loss", "ce", "tokens", "tokens_valid", "attempt", "val_ce", "val_kl_to_teacher"]
)


@cases(100)
@given(
    st.lists(st.dictionaries(KEYS, JSON, max_size=6) | st.binary(max_size=20), max_size=6),
    st.randoms(),
)
def test_a_training_log_gives_figures_or_reasons_and_repeats_change_nothing(
    scratch: RunDir, lines: list[dict[str, object] | bytes], chance: random.Random
) -> None:
    encoded = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
    scratch.logs.mkdir(exist_ok=True)
    scratch.train_log.write_bytes(b"\n".join(encoded))
    first = read_training(scratch.train_log)
    for quantity in (first.steps, first.loss, first.val_kl, first.tokens):
        assert quantity.value is not None or quantity.reason
    whole = [line for line in encoded if line.strip() and b"\n" not in line and b"\r" not in line]
    scratch.train_log.write_bytes(b"\n".join([*whole, *whole]) + b"\n")
    doubled = read_training(scratch.train_log)
    scratch.train_log.write_bytes(b"\n".join(whole) + b"\n")
    once = read_training(scratch.train_log)
    assert (doubled.tokens.value, doubled.steps.value) == (once.tokens.value, once.steps.value)


class Files(dict[str, bytes]):
    """Files by name; a failing case does not print them all."""

    __repr__ = object.__repr__


def whole_files(folder: Path) -> Files:
    """A valid file for each reader of a single file, by name."""
    run = RunDir(folder / "r-s1")
    write_identity(run, identity("r-s1"))
    benchmark(run, entry("student", 1.0), entry("teacher", 2.0))
    write_log(run, [{"step": 1, "loss": 1.0, "tokens": 5}])
    scripted().write(run)
    (power,) = run.power_files()
    pack(power, folder / "segment.parquet")
    write_ledger(run.ledger, ledger_of_run(run).rows)
    return Files(
        {
            "run.json": run.run_json.read_bytes(),
            "ept.json": run.ept_json.read_bytes(),
            "segment.parquet": (folder / "segment.parquet").read_bytes(),
            "old-ept.json": b'{"E_run_J": 5000.0, "T_in": 10, "T_out": 20, "EPT_total_J_per_tok": 166.6}',
            "eval.json": b'{"results": {"arc": {"acc": 0.5, "acc_stderr": 0.1}}, "lm_eval_version": "0.4"}',
            "log.csv": b"timestamp,uuid,power_w\n"
            + b"".join(b"%d,a,%d\n" % (t, 300) for t in range(9)),
            "site.yaml": b"pue: {value: 1.2, unit: '1', source: s}\nprice: {value: 1, unit: E/kWh, source: s}\n",
            "ledger.parquet": run.ledger.read_bytes(),
        }
    )


def read_one(name: str, path: Path) -> object:
    match name:
        case "run.json":
            return read_identity(RunDir(path.parent))
        case "ept.json":
            return read_ept(path)
        case "old-ept.json":
            return read_ept_benchmark(path, "student", None)
        case "eval.json":
            return read_scores(path)
        case "log.csv":
            return read_power_csv(path)
        case "site.yaml":
            return read_site(path)
        case "ledger.parquet":
            return read_ledger(path)
        case _:
            segment = Segment(path)
            list(segment.texts())
            return [segment.read(group, ["t_mono_ns"]) for group in range(len(segment.series))]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return whole_files(tmp_path_factory.mktemp("originals"))


NAMES = (
    "run.json", "ept.json", "old-ept.json", "eval.json", "log.csv", "site.yaml", "ledger.parquet", "segment.parquet"
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@cases(60)
@given(chance=st.randoms(use_true_random=False), garbage=st.binary(max_size=8))
def test_a_damaged_file_is_read_or_refused_in_one_line_and_left_as_it_is(
    originals: Files, scratch: RunDir, name: str, chance: random.Random, garbage: bytes
) -> None:
    data = bytearray(originals[name])
    for _ in range(chance.randint(1, 3)):
        at, kind = chance.randint(0, len(data)), chance.randint(0, 4)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + chance.randint(1, 40)]
        elif kind == 2:
            data[at:at] = garbage
        elif kind == 3:
            data[at : at + 1] = bytes([chance.randint(0, 255)])
        else:
            data[at:at] = data[at : at + chance.randint(1, 60)]
    path = scratch.path / name
    before = path.read_bytes() if name == "run.json" else b""
    path.write_bytes(bytes(data))
    try:
        read_one(name, path)
    except EkdError as error:
        assert "\n" not in str(error)
        assert path.name in str(error)
    finally:
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(data).digest()
        if name == "run.json":
            path.write_bytes(before)
        else:
            path.unlink()
