"""Tasks over a folder of real data on this machine: `bbh/*.json` and `gsm8k/*.jsonl` as their authors publish them.

`bbh_choice_NAME`: the option whose text is the likeliest answer. `gsm8k_choice`: the final number among three that a
slip would give. `gsm8k_bits_per_byte`: compression of questions and worked answers. `gsm8k_generate`: answers written
out, four examples in the prompt. Items are taken in the order of a hash, so that a limit takes no part of a file.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast

from ekd_nemo.errors import DataError, UserError
from ekd_nemo.sources.jsonl import records

CHOICE: Final = "bbh_choice_"
NUM_CHOICES: Final = 4
_GSM8K: Final = ("gsm8k_choice", "gsm8k_bits_per_byte", "gsm8k_generate")
_LETTERED: Final = re.compile(r"^\(([A-Z])\) ?(.*)$", re.MULTILINE)
_DASHED: Final = re.compile(r"^- (.+)$", re.MULTILINE)
_GOLD: Final = re.compile(r"#### (-?[\d,]+)\s*$")
_CALCULATED: Final = re.compile(r"<<[^<>]*=(-?\d+)>>")
_CALCULATION: Final = re.compile(r"<<[^<>]*>>")
# Answers of the tasks whose questions do not list them.
_PLAIN: Final = (("True", "False"), ("yes", "no"), ("Yes", "No"), ("valid", "invalid"))

Item = dict[str, Any]
_SHARED: Final = {"dataset_path": "json", "test_split": "test"}


@dataclass(frozen=True)
class LocalTask:
    """One task: lm-eval's configuration without its data files, and its items by split.

    `is_choice`: items are {query, choices, gold}, which lighteval reads as well.
    """

    name: str
    config: dict[str, Any]
    items: dict[str, list[Item]]
    is_choice: bool


def local_tasks(data: Path) -> dict[str, Callable[[], LocalTask]]:
    """Every task that a folder of data allows, by name; made when called.

    Raises:
        DataError: if the folder holds neither kind of data.
    """
    found: dict[str, Callable[[], LocalTask]] = {
        f"{CHOICE}{path.stem}": partial(_bbh, path) for path in sorted(data.glob("bbh/*.json"))
    }
    test, train = data / "gsm8k" / "test.jsonl", data / "gsm8k" / "train.jsonl"
    if test.is_file():
        found["gsm8k_choice"] = partial(_gsm8k_choice, test)
        found["gsm8k_bits_per_byte"] = partial(_gsm8k_bits, test)
    if test.is_file() and train.is_file():
        found["gsm8k_generate"] = partial(_gsm8k_generate, test, train)
    if not found:
        raise DataError(f"{data}: neither bbh/*.json nor gsm8k/test.jsonl in it")
    return found


def chosen(names: Iterable[str], data: Path | None) -> dict[str, LocalTask]:
    """Those of the asked tasks that are made from local data.

    Raises:
        UserError: for one that the folder does not allow, or without a folder.
        DataError: if the folder holds no such data, or a file of it is broken.
    """
    wanted = [name for name in names if name.startswith(CHOICE) or name in _GSM8K]
    if data is None:
        if wanted:
            raise UserError(
                f"{wanted[0]} is made from local data: name a folder with bbh/*.json or gsm8k/*.jsonl with --task-data"
            )
        return {}
    makers = local_tasks(data)
    absent = [name for name in wanted if name not in makers]
    if absent:
        raise UserError(f"{data}: no data for {absent[0]}; it allows {', '.join(makers)}")
    return {name: makers[name]() for name in wanted}


def choice_task(name: str, items: Sequence[Item]) -> LocalTask:
    """A multiple-choice task over {query, choices, gold}; chance is the mean of one over the number of choices."""
    chance = sum(1 / len(item["choices"]) for item in items) / len(items)
    config = {
        "task": name,
        **_SHARED,
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0, "primary_metric": "acc", "chance": {"acc": round(chance, 6)}},
    }
    return LocalTask(name, config, {"test": by_hash(items)}, is_choice=True)


def by_hash(items: Iterable[Item]) -> list[Item]:
    """In the order of a hash of their content."""
    return sorted(items, key=lambda item: sha256(json.dumps(item).encode()).hexdigest())


def _bbh(path: Path) -> LocalTask:
    try:
        examples = cast("list[dict[str, str]]", json.loads(path.read_bytes())["examples"])
        items = [_bbh_item(example["input"], example["target"]) for example in examples]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a task of BIG-Bench Hard with answers to choose from ({error!r})"
        ) from error
    return choice_task(f"{CHOICE}{path.stem}", items)


def _bbh_item(question: str, target: str) -> Item:
    """The question with its options, and their texts to choose from.

    Raises:
        ValueError: if the target is none of the options.
    """
    options = question.partition("Options:")[2]
    lettered = dict(_LETTERED.findall(options))
    if lettered:
        choices, gold = list(lettered.values()), list(lettered).index(target.strip("()"))
    else:
        listed = _DASHED.findall(options)
        choices = listed or list(next(plain for plain in _PLAIN if target in plain))
        gold = choices.index(target)
    return {
        "query": f"Q: {question}\nA:",
        "choices": [f" {text}" for text in choices],
        "gold": gold,
    }


def _problems(path: Path) -> list[tuple[str, str, int]]:
    """Question, worked answer and its final number."""
    found: list[tuple[str, str, int]] = []
    for number, record in records(path):
        question, answer = record.get("question"), record.get("answer")
        gold = _GOLD.search(answer) if isinstance(answer, str) else None
        if not isinstance(question, str) or gold is None:
            raise DataError(
                f"{path}:{number}: not a GSM8K problem: question, and answer after ####"
            )
        found.append((question, cast("str", answer), int(gold[1].replace(",", ""))))
    return found


def _gsm8k_choice(path: Path) -> LocalTask:
    return choice_task("gsm8k_choice", [_number_item(*problem) for problem in _problems(path)])


def _number_item(question: str, answer: str, gold: int) -> Item:
    """The right number among intermediate results and near misses, ascending."""
    steps = [int(value) for value in _CALCULATED.findall(answer)]
    slips = [*reversed(steps), gold * 2, gold + 10, gold + 1, gold + 2]
    wrong = list(dict.fromkeys(value for value in slips if value != gold))[: NUM_CHOICES - 1]
    choices = sorted([gold, *wrong])
    return {
        "query": f"Question: {question}\nAnswer: The final answer is",
        "choices": [f" {value}" for value in choices],
        "gold": choices.index(gold),
    }


def _gsm8k_bits(path: Path) -> LocalTask:
    name = "gsm8k_bits_per_byte"
    texts = [f"Question: {q}\nAnswer: {_CALCULATION.sub('', a)}" for q, a, _ in _problems(path)]
    config = {
        "task": name,
        **_SHARED,
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "num_fewshot": 0,
        "metric_list": [
            {
                "metric": "bits_per_byte",
                "aggregation": "bits_per_byte",
                "higher_is_better": False,
            }
        ],
        "metadata": {"version": 1.0},
    }
    return LocalTask(name, config, {"test": by_hash({"text": t} for t in texts)}, is_choice=False)


def _gsm8k_generate(test: Path, train: Path) -> LocalTask:
    name = "gsm8k_generate"
    items = {
        split: by_hash(
            {"question": question, "answer": _CALCULATION.sub("", answer), "number": str(gold)}
            for question, answer, gold in _problems(path)
        )
        for split, path in (("test", test), ("train", train))
    }
    config = {
        "task": name,
        **_SHARED,
        "training_split": "train",
        "fewshot_split": "train",
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": " {{answer}}",
        "target_delimiter": "",
        "num_fewshot": 4,
        "generation_kwargs": {
            "until": ["Question:", "\n\n"],
            "do_sample": False,
            "max_gen_toks": 160,
        },
        "filter_list": [
            {
                "name": "strict-match",
                "filter": [
                    {"function": "regex", "regex_pattern": r"#### (\-?[0-9\.\,]+)"},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "regexes_to_ignore": [",", r"\$", r"(?s).*#### ", r"\.$"],
            }
        ],
        "metadata": {
            "version": 1.0,
            "primary_metric": "exact_match",
            "chance": {"exact_match": 0.0},
        },
    }
    return LocalTask(name, config, items, is_choice=False)
