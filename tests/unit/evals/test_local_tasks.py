"""Tasks over local data: their items, the same for both harnesses, and what guessing gets."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ekd_nemo.errors import DataError, UserError
from ekd_nemo.evals.heldout import NUM_CHOICES, WORD_CHOICE, items_of
from ekd_nemo.evals.light import gather_light_tasks
from ekd_nemo.evals.local_tasks import local_tasks
from ekd_nemo.evals.taskset import Split, gather_tasks

SPLIT = Split(1234, 0.1, "test")
DATA = os.environ.get("EKD_TEST_DATA", "")
LETTERED = "Which is it?\nOptions:\n(A) the first\n(B) the second\n(C) the third"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A few items in the authors' own formats."""
    tasks = {
        "lettered": [(LETTERED, "(B)"), (LETTERED, "(C)")],
        "dashed": [("Back at the start?\nOptions:\n- Yes\n- No", "No")],
        "plain": [("not ( True ) is", "False"), ("True or False is", "True")],
    }
    (tmp_path / "bbh").mkdir()
    for name, items in tasks.items():
        body = {"examples": [{"input": asked, "target": target} for asked, target in items]}
        (tmp_path / "bbh" / f"{name}.json").write_text(json.dumps(body))
    (tmp_path / "gsm8k").mkdir()
    problem = {"question": "2 and 3 twice?", "answer": "<<2+3=5>>5\n<<5*2=10>>10\n#### 10"}
    other = {"question": "1,000 less 1?", "answer": "It is <<1000-1=999>>999\n#### 999"}
    for split in ("test", "train"):
        lines = json.dumps(problem) + "\n" + json.dumps(other) + "\n"
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text(lines)
    return tmp_path


def items(data: Path, name: str) -> list[dict[str, Any]]:
    return local_tasks(data)[name]().items["test"]


def test_choices_are_the_texts_of_the_options(data: Path) -> None:
    for item in items(data, "bbh_choice_lettered"):
        assert item["choices"] == [" the first", " the second", " the third"]
        assert item["query"] == f"Q: {LETTERED}\nA:"
    assert sorted(item["gold"] for item in items(data, "bbh_choice_lettered")) == [1, 2]
    (dashed,) = items(data, "bbh_choice_dashed")
    assert (dashed["choices"], dashed["gold"]) == ([" Yes", " No"], 1)
    golds = {item["query"]: item["gold"] for item in items(data, "bbh_choice_plain")}
    assert golds == {"Q: not ( True ) is\nA:": 1, "Q: True or False is\nA:": 0}


def test_chance_is_one_over_the_number_of_choices(data: Path) -> None:
    metadata = local_tasks(data)["bbh_choice_lettered"]().config["metadata"]
    assert metadata["chance"]["acc"] == pytest.approx(1 / 3, abs=1e-6)
    assert metadata["primary_metric"] == "acc"


def test_the_right_number_stands_among_slips_in_ascending_order(data: Path) -> None:
    found = {item["query"]: item for item in items(data, "gsm8k_choice")}
    item = found["Question: 2 and 3 twice?\nAnswer: The final answer is"]
    # 5 is an intermediate result, 20 twice the answer (and ten more), 11 a near miss
    assert item["choices"] == [" 5", " 10", " 11", " 20"]
    assert item["gold"] == 1


def test_worked_answers_lose_the_calculators_marks(data: Path) -> None:
    texts = [item["text"] for item in items(data, "gsm8k_bits_per_byte")]
    assert all("<<" not in text for text in texts)
    assert any("It is 999" in text for text in texts)


def test_both_harnesses_get_the_same_items(data: Path, tmp_path: Path) -> None:
    names = ["bbh_choice_lettered", "gsm8k_choice"]
    lm = gather_tasks(names, None, SPLIT, tmp_path / "lm", data)
    light = gather_light_tasks(names, None, SPLIT, tmp_path / "light", data)
    assert lm.local and light.local
    for name, folder in zip(names, lm.include_paths, strict=True):
        config = yaml.safe_load((folder / f"{name}.yaml").read_text())
        ours = Path(config["dataset_kwargs"]["data_files"]["test"]).read_text()
        assert (Path(light.data or "") / name / "test.jsonl").read_text() == ours


def test_generation_takes_its_examples_from_the_other_file(data: Path, tmp_path: Path) -> None:
    tasks = gather_tasks(["gsm8k_generate"], None, SPLIT, tmp_path / "lm", data)
    (folder,) = tasks.include_paths
    config = yaml.safe_load((folder / "gsm8k_generate.yaml").read_text())
    files = config["dataset_kwargs"]["data_files"]
    assert set(files) == {"test", "train"}
    assert config["fewshot_split"] == "train"
    with pytest.raises(UserError, match="only `ekd eval lm` has it"):
        gather_light_tasks(["gsm8k_generate"], None, SPLIT, tmp_path, data)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("bbh/lettered.json", "{}"),
        ("bbh/lettered.json", json.dumps({"examples": [{"input": LETTERED, "target": "(Z)"}]})),
        ("bbh/lettered.json", "not json"),
    ],
)
def test_a_broken_file_is_named_when_it_is_asked_for(data: Path, path: str, content: str) -> None:
    (data / path).write_text(content)
    makers = local_tasks(data)
    with pytest.raises(DataError, match=r"lettered\.json"):
        makers["bbh_choice_lettered"]()
    makers["bbh_choice_dashed"]()


def test_a_problem_without_a_number_is_named_with_its_line(data: Path) -> None:
    with (data / "gsm8k" / "test.jsonl").open("a") as file:
        file.write('{"question": "q", "answer": "no number"}\n')
    with pytest.raises(DataError, match=r"test\.jsonl:3: not a GSM8K problem"):
        items(data, "gsm8k_choice")


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither bbh"):
        local_tasks(tmp_path)


def test_a_task_without_its_data_says_what_it_needs(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--task-data"):
        gather_tasks(["gsm8k_choice"], None, SPLIT, tmp_path)
    with pytest.raises(UserError, match="no data for bbh_choice_gone; it allows bbh_choice_dashed"):
        gather_tasks(["bbh_choice_gone"], None, SPLIT, tmp_path, data)
    with pytest.raises(UserError, match="--task-data"):
        gather_light_tasks(["bbh_choice_dashed"], None, SPLIT, tmp_path)


def test_words_to_choose_from_hold_the_right_one_and_three_others() -> None:
    found = items_of(WORD_CHOICE, 1234, 0.1)
    words = {item["context"]: item["word"] for item in items_of("python_docs_last_word", 1234, 0.1)}
    assert len(found) >= 100
    golds = [item["gold"] for item in found]
    assert {golds.count(place) > len(found) / 8 for place in range(NUM_CHOICES)} == {True}
    for item in found:
        assert len(set(item["choices"])) == NUM_CHOICES
        if item["query"] in words:
            assert item["choices"][item["gold"]] == f" {words[item['query']]}"


@pytest.mark.skipif(not DATA, reason="EKD_TEST_DATA names no folder of real data")
def test_every_real_file_makes_its_task() -> None:
    for name, make in local_tasks(Path(DATA)).items():
        task = make()
        assert len(task.items["test"]) >= 100, name
        if task.is_choice:
            assert all(0 <= i["gold"] < len(i["choices"]) for i in task.items["test"])
