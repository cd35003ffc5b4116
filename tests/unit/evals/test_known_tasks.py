"""Which metric counts, and what guessing gets."""

import pytest

from ekd_nemo.evals.known_tasks import chance_of, facts_of, primary_of

BOTH = [("acc", "none"), ("acc_norm", "none"), ("exact_match", "none")]
UP = {"acc": True, "acc_norm": True, "exact_match": True, "word_perplexity": False}


@pytest.mark.parametrize(
    ("task", "metric", "chance"),
    [
        ("mmlu", "acc", 0.25),
        ("mmlu_anatomy", "acc", 0.25),
        ("arc_challenge", "acc_norm", 0.25),
        ("hellaswag", "acc_norm", 0.25),
        ("truthfulqa_mc1", "acc", None),
        ("bbh_cot_fewshot_navigate", "exact_match", 0.5),
        ("bbh_cot_fewshot_logical_deduction_three_objects", "exact_match", 1 / 3),
        ("bbh_fewshot_word_sorting", "exact_match", 0.0),
    ],
)
def test_known_tasks(task: str, metric: str, chance: float | None) -> None:
    facts = facts_of(task, {})
    assert facts is not None
    assert facts.chance == chance
    assert primary_of(facts, BOTH, UP) == (metric, "none")


def test_a_name_that_only_begins_alike_is_not_known() -> None:
    assert facts_of("mmlupro", {}) is None


def test_gsm8k_counts_the_strict_filter() -> None:
    found = [("exact_match", "flexible-extract"), ("exact_match", "strict-match")]
    assert primary_of(facts_of("gsm8k", {}), found, UP) == ("exact_match", "strict-match")


def test_the_tasks_own_word_comes_first() -> None:
    metadata = {"primary_metric": "acc", "chance": {"acc": 0.2}}
    facts = facts_of("hellaswag", metadata)
    assert primary_of(facts, BOTH, UP) == ("acc", "none")
    assert chance_of("acc", metadata) == 0.2
    assert chance_of("acc_norm", metadata) is None


def test_a_metric_where_lower_is_better_never_counts() -> None:
    assert primary_of(None, [("word_perplexity", "none")], UP) is None
    metadata = {"primary_metric": "word_perplexity"}
    assert primary_of(facts_of("x", metadata), [("word_perplexity", "none")], UP) is None
