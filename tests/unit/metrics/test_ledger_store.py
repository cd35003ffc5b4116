"""The ledger file: what goes in comes out, byte-identical, and nothing else is taken for one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ekd_nemo.cli.app import main
from ekd_nemo.errors import DataError
from ekd_nemo.metrics.ledger import ledger_of_run
from ekd_nemo.metrics.ledger_store import read_ledger, write_ledger
from tests.unit.metrics.synthetic import make_run


def test_rows_survive_the_file_and_the_bytes_repeat(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-s1")
    rows = list(ledger_of_run(run).rows)
    assert len(rows) > 6
    for name in ("a", "b"):
        write_ledger(tmp_path / name, rows)
    assert read_ledger(tmp_path / "a") == rows
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_empty_ledger_is_a_ledger(tmp_path: Path) -> None:
    write_ledger(tmp_path / "a", [])
    assert read_ledger(tmp_path / "a") == []


def test_the_command_writes_both_files_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "r-s1")
    assert main(["metrics", "ledger", str(tmp_path)]) == 0
    first = run.ledger.read_bytes(), run.summary_json.read_bytes()
    run.ledger.unlink()
    assert main(["metrics", "ledger", str(run.path)]) == 0
    assert (run.ledger.read_bytes(), run.summary_json.read_bytes()) == first
    assert "rows" in capsys.readouterr().out


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.parquet"
    path.write_bytes(b"PAR1nonsense")
    with pytest.raises(DataError, match=r"ledger\.parquet: not a ledger"):
        read_ledger(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DataError, match="another version"):
        read_ledger(path)
