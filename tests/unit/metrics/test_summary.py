"""The whole command over real run directories; tables compared whole with tests/golden/metrics."""

import json
import os
import shutil
from pathlib import Path

import pytest

from ekd_nemo.cli.app import main
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.metrics.quantity import Quantity
from ekd_nemo.metrics.summary import compare, summarise
from ekd_nemo.records.rundir import RunDir
from tests.unit.evals.sidecars import GOLDEN as LM_EVAL
from tests.unit.evals.sidecars import harness_output, sidecar
from tests.unit.metrics.benchmarks import benchmark, entry
from tests.unit.metrics.synthetic import make_run

GOLDEN = Path(__file__).parents[2] / "golden" / "metrics"
REWRITE = "EKD_REWRITE_GOLDEN"


def evaluate(run: RunDir, role: str, accuracy: float, scratch: Path) -> None:
    """A result as lm-eval writes it, with this accuracy of the group; bits per byte beside it."""
    results = json.loads((LM_EVAL / "group.json").read_text())
    for section in ("results", "groups"):
        results[section]["arithmetic_choice"]["acc,none"] = accuracy
    counts = {
        "group.json": {"addition_choice": 6, "product_choice": 6},
        "bits_per_byte.json": {"python_docs_bits_per_byte": 20},
    }
    tasks = {"group.json": "arithmetic_choice", "bits_per_byte.json": "python_docs_bits_per_byte"}
    for golden, task in tasks.items():
        out = harness_output(scratch / run.run_id / role / task, golden, counts[golden])
        if golden == "group.json":
            next(out.glob("*/results_*.json")).write_text(json.dumps(results))
        EvalDir(run.eval).place(out, sidecar(task, role))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three repeats of a method, one of its baseline, and a run that has only begun."""
    folder = tmp_path / "runs"
    for seed, watts in ((1, 300.0), (2, 310.0), (3, 326.0)):
        run = make_run(
            folder, f"smoke_response-abcdef01-s{seed}", watts=watts, loss=2.0 + seed / 100, val_kl=0.4 + seed / 50,
            recipe="smoke_response", baseline="smoke_sft", seed=seed,
        )  # fmt: skip
        evaluate(run, "teacher", 0.8, tmp_path)
        evaluate(run, "student", 0.6 + seed / 50, tmp_path)
        benchmark(
            run,
            entry("student", 0.2 + seed / 100),
            entry("teacher", 1.0, batch=16),
            entry("teacher", 1.1),
        )
    run = make_run(
        folder, "smoke_sft-99887766-s1", watts=200.0, val_kl=0.9,
        recipe="smoke_sft", recipe_hash="998877665544", method="sft",
    )  # fmt: skip
    evaluate(run, "student", 0.5, tmp_path)
    begun = make_run(
        folder, "begun-01234567-s1", recipe="begun", recipe_hash="012345670123", method="feature"
    )
    for path in (begun.telemetry, begun.logs):
        shutil.rmtree(path)
    return folder


@pytest.mark.parametrize(
    ("format", "suffix"),
    [("table", "txt"), ("json", "json"), ("csv", "csv"), ("md", "md"), ("latex", "tex")],
)
def test_summaries_are_the_golden_ones(
    runs: Path, capsys: pytest.CaptureFixture[str], format: str, suffix: str
) -> None:
    """Set EKD_REWRITE_GOLDEN=1 to write them anew, and read the difference before committing it."""
    assert main(["metrics", "summarise", str(runs), "--format", format]) == 0
    got = capsys.readouterr().out
    path = GOLDEN / f"summary.{suffix}"
    if os.environ.get(REWRITE):
        path.parent.mkdir(exist_ok=True)
        path.write_text(got)
    assert path.is_file(), f"{path} is missing: it is part of the repository"
    assert got == path.read_text()


def test_no_line_of_the_tables_is_wider_than_the_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["metrics", "summarise", str(runs)])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 110


def test_the_same_records_give_the_same_bytes_in_any_order(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["metrics", "summarise", str(runs), "--format", "json"])
    whole = capsys.readouterr().out
    folders = sorted(map(str, runs.iterdir()), reverse=True)
    main(["metrics", "summarise", *folders, folders[0], str(runs), "--format", "json"])
    assert capsys.readouterr().out == whole


def test_energies_in_json_and_csv_are_plain_joules(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["metrics", "summarise", str(runs / "smoke_sft-99887766-s1"), "--format", "json"])
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    e_run = run["figures"]["e_run"]
    assert e_run["value"] == pytest.approx(2 * 200 * 114)
    assert (e_run["unit"], e_run["source"], e_run["coverage"]) == ("J", "measured", 1.0)
    per_token = run["figures"]["energy_per_token"]
    assert per_token["value"] == pytest.approx(2 * 200 * 114 / 40960)
    assert run["figures"]["om_perf"]["reason"] == "no scores of the teacher"


@pytest.mark.parametrize("what", ["empty", "absent", "file"])
def test_a_folder_without_runs_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    folder = tmp_path / what
    if what == "empty":
        folder.mkdir()
    elif what == "file":
        folder.write_text("")
    assert main(["metrics", "summarise", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(folder) in captured.err


def test_a_run_json_that_is_none_names_file_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "r-s1")
    run.run_json.write_text('{"run_id": "r-s1"}')
    assert main(["metrics", "summarise", str(tmp_path)]) == 2
    assert "run.json: recipe" in capsys.readouterr().err


def test_an_empty_run_is_a_row_of_reasons(runs: Path) -> None:
    (run,) = summarise([runs / "begun-01234567-s1"]).runs
    for name in (
        "steps",
        "tokens",
        "final_loss",
        "e_run",
        "mean_power",
        "energy_per_token",
        "om_perf",
    ):
        assert run.figures[name].value is None
        assert run.figures[name].reason


def test_a_changed_recipe_of_the_same_name_is_another_method(tmp_path: Path) -> None:
    make_run(tmp_path, "r-1-s1", recipe_hash="111111111111")
    make_run(tmp_path, "r-2-s1", recipe_hash="222222222222")
    assert [method.name for method in summarise([tmp_path]).methods] == ["r@111111", "r@222222"]


def test_runs_of_one_id_in_two_folders_are_charged_their_own_energy(tmp_path: Path) -> None:
    for folder, watts in (("laptop", 100.0), ("cluster", 300.0)):
        make_run(tmp_path / folder, "smoke-abcdef01-s1", watts=watts, recipe="smoke")
    found = summarise([tmp_path / "laptop", tmp_path / "cluster"]).runs
    own = [run.figures["e_run"].value for run in found]
    assert len(set(own)) == 2
    for name in ("e_charged", "e_amortised"):
        assert [run.figures[name].value for run in found] == own


def test_unequal_tokens_are_flagged_in_a_comparison() -> None:
    names = (
        "val_kl", "val_ce", "om_perf", "retention", "e_run", "e_charged", "e_amortised", "energy_per_token", "ept_total"
    )  # fmt: skip
    figures = {name: Quantity(2.0) for name in names}
    fair = compare({**figures, "tokens": Quantity(1000)}, {**figures, "tokens": Quantity(1005)})
    assert fair["e_run_ratio"] == Quantity(1.0)
    unfair = compare({**figures, "tokens": Quantity(1000)}, {**figures, "tokens": Quantity(1500)})
    assert unfair["val_kl_difference"] == Quantity(0.0, flags=("unequal_tokens",))


def test_a_torn_result_costs_its_scores_and_no_other_row(runs: Path) -> None:
    torn = runs / "smoke_response-abcdef01-s2"
    next((torn / "eval").glob("*.json")).write_text('{"results": ')
    summary = summarise([runs])
    rows = {run.run_id: run.figures["om_perf"] for run in summary.runs}
    assert rows[torn.name].value is None
    assert "broken_scores" in rows[torn.name].flags
    assert "eval" in (rows[torn.name].reason or "")
    assert rows["smoke_response-abcdef01-s1"].value is not None
