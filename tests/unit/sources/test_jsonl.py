from pathlib import Path

import pytest

from ekd_nemo.errors import DataError
from ekd_nemo.sources.jsonl import records, sampled_records


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_lines_are_numbered_from_one_and_blank_ones_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "x"}', b"", b'{"text": "y"}')
    assert list(records(path)) == [(1, {"text": "x"}), (3, {"text": "y"})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"a\.jsonl, line 2: not valid JSON \(.*column 13\); expected"),
        (b'{"text": "\xff"}', r"a\.jsonl, line 2: not valid JSON \(not UTF-8 at byte \d+\)"),
        (b"[" * 100_000, r"a\.jsonl, line 2: not valid JSON \(nested too deeply\)"),
        (b"[1]", r"a\.jsonl, line 2: not an object but list"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "x"}', line)
    with pytest.raises(DataError, match=message):
        list(records(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read \(No such file"):
        list(records(tmp_path / "none.jsonl"))


def test_a_sample_is_a_function_of_the_seed(tmp_path: Path) -> None:
    paths = tuple(
        write(tmp_path / name, *(b'{"text": "%d"}' % n for n in range(50)))
        for name in ("a.jsonl", "b.jsonl")
    )
    first = list(sampled_records(paths, 20, seed=1))
    assert first == list(sampled_records(paths, 20, seed=1))
    assert first != list(sampled_records(paths, 20, seed=2))
    assert len({(path, number) for path, number, _ in first}) == 20
    assert {path for path, _, _ in first} == set(paths)
    assert all(record == {"text": str(number - 1)} for _, number, record in first)


def test_a_sample_larger_than_the_files_is_all_of_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "x"}', b'{"text": "y"}')
    assert [number for _, number, _ in sampled_records((path,), 10, seed=0)] == [1, 2]
