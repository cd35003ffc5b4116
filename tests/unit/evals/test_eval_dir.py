"""Results are placed whole or not at all, found again, and never confused."""

from pathlib import Path

import pytest

from ekd_nemo.errors import DataError, RunError
from ekd_nemo.evals.eval_dir import EvalDir
from tests.unit.evals.sidecars import GOLDEN, harness_output, sidecar

GROUP = "arithmetic_choice"
ITEMS = {"addition_choice": 6, "product_choice": 6}


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return harness_output(tmp_path / "scratch", "group.json", ITEMS)


def test_the_harness_file_is_kept_byte_for_byte(tmp_path: Path, scratch: Path) -> None:
    home = EvalDir(tmp_path / "eval")
    home.place(scratch, sidecar(GROUP))
    assert home.results("model", GROUP).read_bytes() == (GOLDEN / "group.json").read_bytes()
    assert [path.name for path in home.samples("model", GROUP)] == [
        "lm.model.arithmetic_choice.addition_choice.jsonl",
        "lm.model.arithmetic_choice.product_choice.jsonl",
    ]
    assert sorted(path.name for path in home.path.glob("*.json")) == [
        "lm.model.arithmetic_choice.json"
    ]


@pytest.mark.parametrize(
    ("weights", "request_hash", "found"),
    [("w1", "r1", True), ("w2", "r1", False), ("w1", "r2", False)],
)
def test_a_result_is_reused_for_its_own_weights_and_settings_only(
    tmp_path: Path, scratch: Path, weights: str, request_hash: str, found: bool
) -> None:
    home = EvalDir(tmp_path / "eval")
    home.place(scratch, sidecar(GROUP))
    assert (home.find("model", GROUP, weights, request_hash) is not None) is found


def test_a_copy_says_where_it_comes_from(tmp_path: Path, scratch: Path) -> None:
    home, run = EvalDir(tmp_path / "home"), EvalDir(tmp_path / "run")
    stored = home.place(scratch, sidecar(GROUP))
    run.copy(stored, "teacher", home)
    (copied,) = run.stored()
    assert (copied.role, copied.settings.copied_from) == ("teacher", str(stored.results))
    assert len(run.samples("teacher", GROUP)) == 2


def test_a_torn_results_file_is_refused_and_the_earlier_one_stays(
    tmp_path: Path, scratch: Path
) -> None:
    home = EvalDir(tmp_path / "eval")
    home.place(scratch, sidecar(GROUP))
    before = home.results("model", GROUP).read_bytes()
    torn = harness_output(tmp_path / "torn", "group.json", ITEMS)
    (file,) = torn.glob("*/results_*.json")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RunError, match="torn results file.*MiB free"):
        home.place(torn, sidecar(GROUP, request_hash="r2"))
    assert home.results("model", GROUP).read_bytes() == before
    assert home.find("model", GROUP, "w1", "r1") is not None


def test_missing_results_and_cut_logs_are_refused(tmp_path: Path) -> None:
    home = EvalDir(tmp_path / "eval")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="left no results"):
        home.place(tmp_path / "empty", sidecar(GROUP))
    cut = harness_output(tmp_path / "cut", "group.json", {**ITEMS, "product_choice": 5})
    with pytest.raises(RunError, match="logged 5 of 6 items of product_choice"):
        home.place(cut, sidecar(GROUP))
    assert not home.path.exists()


def test_a_result_with_another_results_settings_is_refused(tmp_path: Path, scratch: Path) -> None:
    home = EvalDir(tmp_path / "eval")
    home.place(scratch, sidecar(GROUP))
    with home.results("model", GROUP).open("a") as file:
        file.write(" ")
    assert home.find("model", GROUP, "w1", "r1") is None
    with pytest.raises(DataError, match="evaluate again"):
        home.stored()


def test_a_result_without_settings_is_refused(tmp_path: Path, scratch: Path) -> None:
    home = EvalDir(tmp_path / "eval")
    home.place(scratch, sidecar(GROUP))
    home.settings("model", GROUP).write_text("{}")
    with pytest.raises(DataError, match="not the settings of"):
        home.stored()


def test_logs_of_an_earlier_result_do_not_linger(tmp_path: Path, scratch: Path) -> None:
    home = EvalDir(tmp_path / "eval")
    home.place(scratch, sidecar(GROUP))
    stray = home.path / "samples" / f"lm.model.{GROUP}.gone_choice.jsonl"
    stray.write_text("{}\n")
    home.place(scratch, sidecar(GROUP))
    assert stray not in home.samples("model", GROUP)
    assert len(home.samples("model", GROUP)) == 2
