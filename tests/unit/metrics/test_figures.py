"""Quantities, repeats, OM_perf, EPT, Eff_overall, N*, T*: each against its formula written out."""

import math
from pathlib import Path
from typing import Any

import pytest

from ekd_nemo.evals.results import Score
from ekd_nemo.metrics.charged import charges_of
from ekd_nemo.metrics.efficiency import (
    energy_per_token,
    overall_efficiency,
    reuses_to_break_even,
    tokens_to_break_even,
)
from ekd_nemo.metrics.quality import ScoreMismatchError, performance, shown_scores
from ekd_nemo.metrics.quantity import Quantity, total
from ekd_nemo.metrics.repeats import mean_of_repeats, t_975
from ekd_nemo.records.identity import Input


def joules(value: float, **more: Any) -> Quantity:
    return Quantity(value, "J", **{"source": "measured", **more})


def test_a_missing_value_needs_its_reason_and_a_value_is_finite() -> None:
    with pytest.raises(ValueError, match="reason"):
        Quantity(None, "J")
    with pytest.raises(ValueError, match="finite"):
        Quantity(math.nan)


def test_a_sum_has_the_weakest_source_the_worst_coverage_and_all_flags() -> None:
    parts = [
        joules(1.5, coverage=1.0, flags=("b",)),
        joules(2.5, source="estimated", coverage=0.9, low=2.5, high=4.0, flags=("a", "b")),
    ]
    assert total(parts, "J", "none") == Quantity(4.0, "J", "estimated", 0.9, 4.0, 5.5, ("a", "b"))


def test_a_sum_with_a_missing_part_is_missing_never_smaller() -> None:
    result = total([joules(1), Quantity.missing("J", "no meter")], "J", "none")
    assert (result.value, result.reason) == (None, "no meter")
    assert total([], "J", "no host meter").reason == "no host meter"


def test_a_part_without_an_upper_bound_leaves_the_sum_without_one() -> None:
    result = total([joules(1), joules(2, low=2.0, high=None)], "J", "")
    assert (result.low, result.high) == (3.0, None)


@pytest.mark.parametrize("divisor", [0, -3])
def test_division_by_nothing_is_missing(divisor: float) -> None:
    assert joules(5).divided_by(Quantity(divisor), "J/token").value is None


# Reference: R's qt(0.975, df), six digits.
@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.30265), (4, 2.77645), (10, 2.22814), (30, 2.04227), (31, 2.03951), (60, 2.00030)],
)  # fmt: skip
def test_t_quantiles(degrees: int, quantile: float) -> None:
    # the table has three decimals
    assert t_975(degrees) == pytest.approx(quantile, abs=5.1e-4)


def test_mean_and_interval_of_repeats() -> None:
    values = [10.0, 12.0, 11.0, 13.0, 9.0]
    result = mean_of_repeats([joules(value) for value in values], "J")
    deviation = math.sqrt(sum((v - 11) ** 2 for v in values) / 4)
    half = 2.776 * deviation / math.sqrt(5)
    assert result.value == 11
    assert (result.low, result.high) == (pytest.approx(11 - half), pytest.approx(11 + half))
    assert result.flags == ()


def test_few_and_missing_repeats_are_flagged() -> None:
    one = mean_of_repeats([joules(3)], "J")
    assert (one.value, one.low, one.flags) == (3, None, ("few_repeats",))
    two = mean_of_repeats([joules(3), Quantity.missing("J", "lost"), joules(5)], "J")
    assert (two.value, two.flags) == (4, ("few_repeats", "missing_repeats"))
    assert mean_of_repeats([Quantity.missing("J", "lost")], "J").reason == "lost"


def score(role: str, task: str, value: float, **changes: Any) -> Score:
    values: dict[str, Any] = {
        "role": role,
        "task": task,
        "metric": "acc",
        "filter": "none",
        "value": value,
        "stderr": None,
        "higher_is_better": True,
        "primary": True,
        "chance": None,
        "group": None,
        "is_group": False,
        "n_samples": 100,
        "harness": "lm-eval",
        "version": "0.4.13",
        "settings_hash": "aaaa",
        "model": role,
        "weights_hash": role,
        "source": Path(f"eval/lm.{role}.{task}.json"),
    }
    return Score(**(values | changes))


def both(task: str, student: float, teacher: float, **changes: Any) -> list[Score]:
    return [score("student", task, student, **changes), score("teacher", task, teacher, **changes)]


def test_om_perf_is_the_mean_of_ratios_and_rms_is_another_figure() -> None:
    result = performance([*both("a", 0.4, 0.8), *both("b", 0.9, 0.9)])
    assert result.om_perf.value == pytest.approx((0.5 + 1.0) / 2)
    assert result.om_perf_rms.value == pytest.approx(math.sqrt((0.25 + 1.0) / 2))
    assert result.retention.value is None


def test_lower_is_better_never_counts() -> None:
    scores = [
        *both("a", 0.4, 0.8),
        *both("b", 1.2, 1.0, metric="bits_per_byte", higher_is_better=False),
    ]
    assert performance(scores).om_perf.value == 0.5
    # even where a result file calls such a metric primary
    assert [pair.student.task for pair in performance(scores).pairs] == ["a"]
    assert shown_scores(scores, "student")["b bits_per_byte"].unit == "bits/byte"


def test_a_suite_counts_once() -> None:
    scores = [
        *both("mmlu", 0.5, 1.0, is_group=True),
        *both("mmlu_law", 0.1, 1.0, group="mmlu"),
        *both("mmlu_math", 0.9, 1.0, group="mmlu"),
        *both("arc", 1.0, 1.0),
    ]
    assert performance(scores).om_perf.value == pytest.approx(0.75)
    assert sorted(shown_scores(scores, "student")) == ["arc acc", "mmlu acc"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "acc_norm"}, "metric: acc_norm against acc"),
        ({"harness": "lighteval"}, "harness: lighteval against lm-eval"),
        ({"version": "0.4.12"}, "harness version: 0.4.12 against 0.4.13"),
        ({"settings_hash": "bbbb"}, "settings: bbbb against aaaa"),
    ],
)
def test_scores_that_do_not_compare_are_refused_with_the_pair_named(
    changes: dict[str, Any], words: str
) -> None:
    scores = [score("student", "bbh", 0.66, **changes), score("teacher", "bbh", 0.36)]
    with pytest.raises(
        ScoreMismatchError, match=r"bbh: student .*lm.student.bbh.json.*lm.teacher.bbh.json"
    ) as error:
        performance(scores)
    assert words in str(error.value)


def test_retention_above_chance_and_the_near_chance_flag() -> None:
    plain = performance(both("a", 0.40, 0.70, chance=0.25))
    assert plain.retention.value == pytest.approx(0.15 / 0.45)
    assert plain.om_perf.flags == ()
    near = performance(both("a", 0.24, 0.28, chance=0.25, stderr=0.02))
    assert near.retention.value == pytest.approx(-0.01 / 0.03)
    assert near.om_perf.flags == near.retention.flags == ("teacher_near_chance",)
    below = performance(both("a", 0.30, 0.25, chance=0.25))
    assert below.retention.value is None
    assert "not above chance" in (below.retention.reason or "")


def test_standard_errors_become_an_interval() -> None:
    result = performance(both("a", 0.4, 0.8, stderr=0.01)).om_perf
    error = math.sqrt((0.01 / 0.8) ** 2 + (0.4 * 0.01 / 0.64) ** 2)
    assert (result.low, result.high) == (
        pytest.approx(0.5 - 1.96 * error),
        pytest.approx(0.5 + 1.96 * error),
    )


def test_retention_has_the_interval_of_its_own_ratio() -> None:
    found = performance(both("a", 0.40, 0.70, chance=0.25, stderr=0.01)).retention
    error = math.sqrt((0.01 / 0.45) ** 2 + (0.15 * 0.01 / 0.45**2) ** 2)
    assert found.low == pytest.approx(0.15 / 0.45 - 1.96 * error)
    assert found.high == pytest.approx(0.15 / 0.45 + 1.96 * error)


def test_a_score_near_chance_is_shown_as_such() -> None:
    scores = [
        score("student", "near", 0.27, chance=0.25, stderr=0.02),
        score("student", "above", 0.40, chance=0.25, stderr=0.02),
        score("student", "below", 0.10, chance=0.25, stderr=0.02),
        score("student", "unknown", 0.27, stderr=0.02),
        score("student", "nothing", 0.0, chance=0.0, stderr=0.0),
    ]
    shown = shown_scores(scores, "student")
    flagged = {name.split()[0] for name, figure in shown.items() if figure.flags}
    assert flagged == {"near", "below"}


def test_om_perf_without_a_teacher_or_a_partner() -> None:
    assert performance([score("student", "a", 1)]).om_perf.reason == "no scores of the teacher"
    assert performance([]).om_perf.reason == "no scores of the student"
    scores = [*both("a", 0.5, 1.0), score("student", "b", 1.0)]
    assert performance(scores).om_perf.flags == ("tasks_without_partner",)
    zero = performance(both("a", 0.5, 0.0)).om_perf
    assert zero.reason == "the teacher scores 0 on a"


def test_energy_per_token_over_each_count() -> None:
    result = energy_per_token(joules(1200), 60, input_tokens=100, output_tokens=300, requests=10)
    parts = (result.per_input_token, result.per_output_token, result.per_token, result.per_request)
    assert [part.value for part in parts] == [12, 4, 3, 120]
    assert result.per_token.unit == "J/token"


def test_energy_per_token_is_refused_below_five_seconds_and_without_tokens() -> None:
    short = energy_per_token(joules(10), 4.9, 10, 10, 1)
    assert short.per_token.value is None
    assert "5 s needed" in (short.per_token.reason or "")
    empty = energy_per_token(joules(10), 6, 10, 0, 1)
    assert empty.per_output_token.value is None
    assert empty.per_input_token.value == 1


def test_overall_efficiency_is_the_mean_over_students() -> None:
    result = overall_efficiency(
        [Quantity(0.9), Quantity(0.8)],
        [Quantity(2.0, "J/token"), Quantity(4.0, "J/token")],
        Quantity(16.0, "J/token"),
    )
    assert result.value == pytest.approx((0.9 * 16 / 2 + 0.8 * 16 / 4) / 2)
    missing = overall_efficiency(
        [Quantity(0.9)], [Quantity.missing("J/token", "no ept.json")], Quantity(16.0)
    )
    assert missing.reason == "no ept.json"


def test_break_even_counts() -> None:
    assert reuses_to_break_even(joules(900), joules(500), joules(200)).value == pytest.approx(3)
    assert (
        tokens_to_break_even(joules(1e6), Quantity(8.0, "J/token"), Quantity(3.0, "J/token")).value
        == 2e5
    )
    for live in (200, 150):
        never = reuses_to_break_even(joules(900), joules(live), joules(200))
        assert never.value is None
        assert "saves nothing" in (never.reason or "")


def reads(run_id: str | None, kind: Any = "cache") -> Input:
    return Input(kind=kind, path="p", run_id=run_id)


def test_charged_and_amortised_energy_of_a_cache_used_twice() -> None:
    own = {"cache": joules(900), "a": joules(100), "b": joules(200), "live": joules(500)}
    inputs = {"a": (reads("cache"),), "b": (reads("cache"), reads(None, "data"))}
    charges = charges_of(own, inputs)
    assert [charges[run].charged.value for run in own] == [900, 1000, 1100, 500]
    assert [charges[run].amortised.value for run in own] == [900, 550, 650, 500]


def test_charged_energy_is_missing_when_the_maker_is_not_known() -> None:
    charges = charges_of(
        {"a": joules(1), "b": joules(1)}, {"a": (reads("gone"),), "b": (reads(None),)}
    )
    assert (
        charges["a"].charged.reason == "run gone, which made what was read, is not among the runs"
    )
    assert charges["b"].amortised.reason == "the run that made the cache p is not known"


def test_a_circle_of_makers_ends() -> None:
    charges = charges_of({"a": joules(1), "b": joules(1)}, {"a": (reads("b"),), "b": (reads("a"),)})
    assert charges["a"].charged.value is None
