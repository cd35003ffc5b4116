"""EPT, Eff_overall, T*, N* and a site's factors, from records of run directories."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ekd_nemo.cli.app import main
from ekd_nemo.metrics.inference import NO_BENCHMARK, inference_figures, matched
from ekd_nemo.metrics.quantity import Quantity
from ekd_nemo.metrics.summary import summarise
from ekd_nemo.records.ept import EptEngine, EptFile
from ekd_nemo.records.identity import Input
from ekd_nemo.records.rundir import RunDir
from tests.unit.metrics.benchmarks import benchmark, entry, workload
from tests.unit.metrics.synthetic import Recorder, make_run


def file_of(*entries: Any) -> EptFile:
    return EptFile().with_entries(entries)


def test_each_model_counts_at_its_best_batch_of_the_longest_fixed_workload() -> None:
    short, natural = workload(input_tokens=10), workload("natural")
    file = file_of(
        entry("student", 4.0, batch=1),
        entry("student", 1.0, batch=16),
        entry("student", 2.0, batch=64),
        entry("student", 0.1, batch=16, asked=short),
        entry("student", 1.5, batch=16, asked=natural),
    )
    figures = inference_figures(file, "student")
    assert figures["ept_total"].value == pytest.approx(1.0)
    assert figures["ept_in"].value == pytest.approx(1.0 * 1500 / 1000)
    assert figures["ept_out"].value == pytest.approx(1.0 * 1500 / 500)
    assert figures["ept_request"].value == pytest.approx(150.0)
    assert figures["ept_prefill"].value == pytest.approx(0.04)
    assert figures["ept_decode"].value == pytest.approx(0.12)
    assert figures["ept_natural"].value == pytest.approx(1.5)
    assert figures["ept_batch"].value == 16
    low, high = figures["ept_total"].low, figures["ept_total"].high
    assert low is not None and high is not None
    # three repeats at 0.99, 1.00, 1.01: t(2) = 4.303, s / sqrt(3) = 0.00577
    assert high - low == pytest.approx(2 * 4.303 * 0.01 / 3**0.5, rel=1e-6)


def test_what_was_refused_is_missing_with_its_reason() -> None:
    file = file_of(entry("student", 1.0, repeats=1, duration_s=3.0))
    figures = inference_figures(file, "student")
    for name in ("ept_in", "ept_out", "ept_total", "ept_request"):
        assert figures[name].value is None and "5 s needed" in (figures[name].reason or "")
    assert inference_figures(EptFile(), "student")["ept_total"].reason == NO_BENCHMARK
    assert "no entry of the teacher" in (inference_figures(file, "teacher")["ept_in"].reason or "")


def test_short_repeats_that_reach_five_seconds_together_have_an_interval() -> None:
    figures = inference_figures(file_of(entry("student", 1.0, duration_s=2.0)), "student")
    assert figures["ept_total"].value == pytest.approx(1.0)
    assert figures["ept_total"].low is not None


def test_student_and_teacher_compare_on_one_workload_and_engine_only() -> None:
    other = EptEngine(name="vllm", version="0.1")
    for entries, reason in (
        ((entry("student", 1.0), entry("teacher", 5.0, asked=workload(new_tokens=7))), "share no"),
        ((entry("student", 1.0), entry("teacher", 5.0, engine=other)), "share no workload"),
        ((entry("student", 1.0),), "no entry of the teacher"),
    ):
        assert reason in (matched(file_of(*entries)).teacher.reason or "")


def test_equal_batch_stands_beside_the_best_ones_and_other_boards_are_flagged() -> None:
    file = file_of(
        entry("student", 1.0, batch=32),
        entry("student", 2.0, batch=8),
        entry("teacher", 6.0, batch=8, uuid="GPU-9"),
        entry("teacher", 9.0, batch=4, uuid="GPU-9"),
    )
    best, equal = matched(file), matched(file, equal_batch=True)
    assert (best.student.value, best.teacher.value) == pytest.approx((1.0, 6.0))
    assert (equal.student.value, equal.teacher.value) == pytest.approx((2.0, 6.0))
    assert "other_boards" in best.student.flags
    lonely = file_of(entry("student", 1.0, batch=32), entry("teacher", 6.0, batch=8))
    assert "no batch size" in (matched(lonely, equal_batch=True).student.reason or "")


def recipe_of(run: RunDir, placement: str, **more: Any) -> None:
    teacher = {"path": "T", "placement": placement, **more.pop("teacher", {})}
    recipe = {"name": run.run_id, "seed": 1, "teacher": teacher, "train": {"steps": 10}, **more}
    run.recipe_yaml.write_text(yaml.safe_dump(recipe))


def cached_pair(tmp_path: Path, **cached: Any) -> Path:
    """A cache of 2 * 100 W * 114 s, a run that reads it at 200 W and one with a live teacher at 500 W."""
    runs = tmp_path / "runs"
    make_run(runs, "cache", watts=100.0, recipe="cache", recipe_hash="c" * 12, method="command")
    reads = (Input(kind="cache", path="x", run_id="cache"),)
    run = make_run(runs, "cached", watts=200.0, recipe="cached", recipe_hash="1" * 12, inputs=reads)
    recipe_of(run, "cached", teacher={"cache": {"path": "x"}}, **cached)
    live = make_run(runs, "live", watts=500.0, recipe="live", recipe_hash="2" * 12)
    recipe_of(live, "shared")
    return runs


def relabelled(runs: Path) -> None:
    """Make the run `cache` one that trains nothing."""
    marks = RunDir(runs / "cache").marks_files()
    for path in marks:
        path.write_text(path.read_text().replace("student_train", "teacher_cache"))


def test_a_cache_pays_after_its_energy_over_what_a_use_saves(tmp_path: Path) -> None:
    runs = cached_pair(tmp_path)
    relabelled(runs)
    methods = {method.name: method for method in summarise([runs]).methods}
    assert methods["cached"].figures["n_star"].value == pytest.approx(100 / (500 - 200))
    assert "not read from a cache" in (methods["live"].figures["n_star"].reason or "")


def test_without_an_equal_live_run_there_is_no_break_even_count(tmp_path: Path) -> None:
    methods = {m.name: m for m in summarise([cached_pair(tmp_path, optimizer={"lr": 2})]).methods}
    assert "same recipe" in (methods["cached"].figures["n_star"].reason or "")


def test_a_training_run_that_made_a_cache_charges_others_the_making_alone(tmp_path: Path) -> None:
    """The maker ran 10 s of teacher_cache at 300 W on two boards before it trained; three runs read it."""
    reads = (Input(kind="cache", path="x", run_id="first"),)
    first = make_run(tmp_path, "first", inputs=reads)
    begun = Recorder()
    for rank in (0, 1):
        begun.phase(rank, "teacher_cache", 20, 30)
    begun.telemetry = []
    begun.write(first)
    for number in (2, 3):
        make_run(tmp_path, f"r-s{number}", watts=200.0, inputs=reads)
    runs = {run.run_id: run.figures for run in summarise([tmp_path]).runs}
    making = 2 * 300.0 * 10
    own = {name: figures["e_run"].value or 0.0 for name, figures in runs.items()}
    assert runs["first"]["phase:teacher_cache"].value == pytest.approx(making)
    for name, figures in runs.items():
        extra = 0 if name == "first" else making
        assert figures["e_charged"].value == pytest.approx(own[name] + extra)
    amortised = sum(figures["e_amortised"].value or 0.0 for figures in runs.values())
    assert amortised == pytest.approx(sum(own.values()))  # nothing is counted twice


def test_efficiency_and_break_even_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-s1", watts=300.0)
    benchmark(run, entry("student", 1.0), entry("teacher", 5.0))
    (found,) = summarise([tmp_path]).runs
    e_run = found.figures["e_run"].value or 0.0
    assert found.figures["t_star"].value == pytest.approx(e_run / 4.0)
    assert found.figures["eff_overall"].reason == "no scores of the student"
    assert found.teacher["ept_total"].value == pytest.approx(5.0)


def test_a_broken_benchmark_costs_its_figures_and_no_row(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r-s1")
    run.ept_json.write_text('{"entries": [')
    (found,) = summarise([tmp_path]).runs
    assert "ept.json" in (found.figures["ept_total"].reason or "")
    assert found.figures["e_run"].value is not None


SITE = {
    "pue": {"value": 1.2, "unit": "1", "source": "site 2026"},
    "grid_carbon": {"value": 300, "unit": "g/kWh", "source": "grid 2025"},
    "price": {"value": 0.25, "unit": "EUR/kWh", "source": "contract"},
}


def test_a_sites_factors_are_shown_and_never_in_the_joules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "runs", "r-s1")
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump(SITE))
    plain = summarise([tmp_path / "runs"]).runs[0].figures
    assert (
        main(
            [
                "metrics",
                "summarise",
                str(tmp_path / "runs"),
                "--site",
                str(site),
                "--format",
                "json",
            ]
        )
        == 0
    )
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    kwh = 2 * 300 * 114 / 3.6e6
    assert run["figures"]["e_run"]["value"] == pytest.approx(plain["e_run"].value)
    assert run["figures"]["facility_kwh"]["value"] == pytest.approx(kwh * 1.2)
    assert run["figures"]["carbon"]["value"] == pytest.approx(kwh * 1.2 * 300)
    assert run["figures"]["cost"]["value"] == pytest.approx(kwh * 1.2 * 0.25)
    assert run["figures"]["cost"]["unit"] == "EUR"
    assert run["factors"]["pue"] == SITE["pue"]
    for name in ("facility_kwh", "carbon", "cost"):
        assert plain[name].value is None and "source" in (plain[name].reason or "")
    main(["metrics", "summarise", str(tmp_path / "runs"), "--site", str(site)])
    table = capsys.readouterr().out
    assert "PUE 1.2 (site 2026)" in table and "grid 2025" in table and " EUR" in table


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pue: {value: 1.2, unit: '1'}", "pue.source"),
        ("pue: {value: 0.9, unit: '1', source: s}", "at least 1"),
        ("grid_carbon: {value: 3, unit: lb/kWh, source: s}", "gCO2e/kWh"),
        ("price: {value: 3, unit: EUR, source: s}", "EUR/kWh"),
        ("colour: red", "pue, grid_carbon, price"),
        ("pue: [", "site.yaml"),
    ],
)
def test_a_site_file_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    make_run(tmp_path / "runs", "r-s1")
    site = tmp_path / "site.yaml"
    site.write_text(text)
    assert main(["metrics", "summarise", str(tmp_path / "runs"), "--site", str(site)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error and "site.yaml" in error


def test_runs_of_one_id_in_two_folders_are_told_apart_everywhere(tmp_path: Path) -> None:
    for folder, watts in (("laptop", 100.0), ("cluster", 300.0)):
        reads = (Input(kind="cache", path="x", run_id="cache"),)
        make_run(tmp_path / folder, "same", watts=watts, recipe="same", inputs=reads)
        make_run(tmp_path / folder, "cache", watts=watts / 2, recipe="cache", recipe_hash="c" * 12)
    summary = summarise([tmp_path / "laptop", tmp_path / "cluster"])
    assert sorted(run.run_id for run in summary.runs) == [
        "cluster/cache", "cluster/same", "laptop/cache", "laptop/same"
    ]  # fmt: skip
    same = {r.run_id: r.figures for r in summary.runs if r.identity.run_id == "same"}
    ratio = {name: figures["e_charged"].value for name, figures in same.items()}
    assert ratio["cluster/same"] == pytest.approx(3 * (ratio["laptop/same"] or 0))
    assert {name for m in summary.methods for name in m.runs} == {r.run_id for r in summary.runs}


def test_a_quantity_less_another_has_no_bounds() -> None:
    from ekd_nemo.metrics.quantity import difference

    one = Quantity(5.0, "J", "measured", 1.0, 4.0, 6.0)
    assert difference(one, Quantity(2.0, "J", "estimated")) == Quantity(3.0, "J", "estimated")
