"""Suites: their tasks, shots, and the one metric of each task."""

from ekd_nemo.evals.known_tasks import facts_of
from ekd_nemo.evals.request import LmSettings
from ekd_nemo.evals.suites import SUITES, expand, shots_of


def test_suites_are_replaced_by_their_tasks_each_once() -> None:
    assert expand(["om_perf"]) == ("mmlu", "arc_challenge", "bbh", "hellaswag")
    assert expand(["extended"]) == (*expand(["om_perf"]), "gsm8k", "truthfulqa_mc2")
    assert expand(["mine", "om_perf", "mmlu"]) == ("mine", *expand(["om_perf"]))
    assert expand(["mmlu"]) == ("mmlu",)


def test_every_task_of_a_suite_has_one_metric() -> None:
    found = {task: facts_of(task, {}) for tasks in SUITES.values() for task in tasks}
    assert all(found.values())
    assert {task: facts.metric for task, facts in found.items() if facts} == {
        "mmlu": "acc",
        "arc_challenge": "acc_norm",
        "bbh": "exact_match",
        "hellaswag": "acc_norm",
        "gsm8k": "exact_match",
        "truthfulqa_mc2": "acc",
    }


def test_shots_are_the_suites_unless_they_are_given() -> None:
    shots = shots_of(["om_perf"])
    assert shots == {"mmlu": 5, "arc_challenge": 25, "hellaswag": 10}
    settings = LmSettings(tasks=expand(["om_perf"]), shots=shots)
    assert [settings.shots_of(task) for task in settings.tasks] == [5, 25, None, 10]
    given = settings.model_copy(update={"num_fewshot": 0})
    assert [given.shots_of(task) for task in settings.tasks] == [0, 0, 0, 0]
    assert shots_of(["mmlu"]) == {}, "a task that is named by itself keeps its own"


def test_shots_name_the_result() -> None:
    plain, five = (LmSettings(tasks=("mmlu",), shots=shots) for shots in ({}, {"mmlu": 5}))
    given = LmSettings(tasks=("mmlu",), num_fewshot=5)
    identities = [s.identity("mmlu", "t", "lm-eval", "1") for s in (plain, five, given)]
    assert identities[0] != identities[1] == identities[2]
