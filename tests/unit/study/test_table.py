"""The table of the study: from canned records, and the committed one again from the committed records."""

import json
from typing import Any

import pytest

from ekd_nemo.metrics.quantity import Quantity
from tools.study import table
from tools.study.records import as_json, of_json

# method: (energy in J, KL of seeds 1, 2, 3)
CANNED = {
    "sft": (100.0, (3.0, 3.1, 3.2)),
    "response": (150.0, (2.8, 2.9, 3.0)),
    "feature": (160.0, (3.1, 3.0, 3.3)),
}


def run(label: str, seed: int, kl: float, joules: float) -> dict[str, Any]:
    figures = {
        "steps": Quantity(8, "steps"),
        "tokens": Quantity(4096, "tokens"),
        "val_ce": Quantity(kl + 2, "nats/token"),
        "val_kl": Quantity(kl, "nats/token"),
        "e_run": Quantity(joules, "J", "estimated"),
        "e_charged": Quantity(joules, "J", "estimated"),
        "t_star": Quantity.missing("tokens", "no benchmark"),
    }
    accuracy = {"task": table.LAST_WORD, "metric": "acc", "stderr": 0.05, "items": 64}
    return {
        "run_id": f"{label}-s{seed}",
        "label": label,
        "seed": seed,
        "recipe_hash": "0123456789ab",
        "attempts": 1,
        "figures": {name: as_json(quantity) for name, quantity in figures.items()},
        "first_step": {"loss": 9.5, "ce": 9.5, "grad_norm": 17.9},
        "scores": [
            accuracy | {"role": "student", "value": 0.02, "chance": 0.0, "near_chance": True},
            accuracy | {"role": "teacher", "value": 0.33, "chance": 0.0, "near_chance": False},
        ],
        "against_sft": [],
    }


@pytest.fixture
def record() -> dict[str, Any]:
    runs = [
        run(label, seed, kl, joules)
        for label, (joules, kls) in CANNED.items()
        for seed, kl in enumerate(kls, 1)
    ]
    asked = {
        "methods": dict.fromkeys([*CANNED, "relation"], "r"),
        "seeds": [1, 2, 3],
        "live": [],
        "variants": {},
        "cache": None,
        "set": ["train.steps=8"],
        "evaluation": {"limit": 64},
    }
    return {"plan": "short", "asked": asked, "machine": {}, "runs": runs, "n_star": []}


def row(text: str, section: str, first: str) -> list[str]:
    body = text.split(f"### {section}")[1].split("###")[0]
    line = next(each for each in body.splitlines() if each.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_interval_over_seeds_is_students_t(record: dict[str, Any]) -> None:
    # 3.0, 3.1, 3.2: mean 3.1, standard error 0.1 / sqrt(3), t(2) = 4.303
    assert row(table.table_of([record], ""), "Held-out text", "sft")[3] == "3.1000 ± 0.2484"


def test_a_difference_that_every_seed_shows_is_bold_and_another_is_not(
    record: dict[str, Any],
) -> None:
    text = table.table_of([record], "")
    section = "Against fine-tuning, seed by seed"
    assert row(text, section, "response")[2] == "**-0.2000 ± 0.0000**"
    # +0.1, -0.1, +0.1: the interval holds 0
    assert row(text, section, "feature")[2] == "+0.0333 ± 0.2869"


def test_what_was_not_run_is_said(record: dict[str, Any]) -> None:
    assert "9 of 12 runs are finished; what is missing is not in the tables." in table.table_of(
        [record], ""
    )


def test_a_method_that_costs_more_and_does_worse_is_off_the_frontier(
    record: dict[str, Any],
) -> None:
    assert table.efficient(record["runs"]) == {"sft", "response"}


def test_near_chance_is_marked_and_missing_is_na(record: dict[str, Any]) -> None:
    text = table.table_of([record], "")
    cells = row(text, "Scores", f"{table.LAST_WORD} (acc)")
    assert cells[1].endswith("*")
    assert not cells[4].endswith("*")
    assert row(text, "Energy", "sft")[-1] == "n/a"
    assert "Source of every joule: estimated." in text


def test_a_pair_that_lacks_its_baseline_is_left_out(record: dict[str, Any]) -> None:
    record["runs"] = [each for each in record["runs"] if each["run_id"] != "sft-s1"]
    text = table.table_of([record], "")
    # of seeds 2 and 3 alone: -0.1 and +0.1, t(1) = 12.706
    assert row(text, "Against fine-tuning, seed by seed", "feature")[2].endswith("0.0000 ± 1.2706")


def test_a_figure_survives_its_record() -> None:
    for quantity in (
        Quantity(1.5, "J", "estimated", None, 1.0, 2.0, ("few_repeats",)),
        Quantity.missing("J", "no meter"),
    ):
        assert of_json(json.loads(json.dumps(as_json(quantity)))) == quantity


def test_the_committed_table_is_made_from_the_committed_records() -> None:
    findings = table.FINDINGS.read_text(encoding="utf-8")
    made = table.table_of(table.read_records(table.RECORDS), findings)
    assert table.RESULTS.read_bytes() == made.encode(), "python -m tools.study.table makes it again"
