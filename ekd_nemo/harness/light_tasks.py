"""The project's own tasks as lighteval has them: the same items and the same questions as their lm-eval files.

A custom task file, imported by lighteval in its own environment; EKD_LIGHT_DATA names a folder with one folder of items
a task. Not covered: bits per byte; the rolling log-likelihood of lighteval 0.13.0 scores each token by the prediction
after it.
"""

import os
from pathlib import Path
from typing import Any

from lighteval.metrics.metrics import Metrics  # pyright: ignore[reportMissingImports]
from lighteval.tasks.lighteval_task import (  # pyright: ignore[reportMissingImports]
    LightevalTaskConfig,
)
from lighteval.tasks.requests import Doc  # pyright: ignore[reportMissingImports]


def last_word(line: dict[str, Any], task_name: str | None = None) -> Doc:
    """The word that ends the sentence; right if every token of it is the likeliest."""
    return Doc(
        task_name=task_name, query=line["context"], choices=[f" {line['word']}"], gold_index=0
    )


def choice(line: dict[str, Any], task_name: str | None = None) -> Doc:
    """The likeliest of several continuations."""
    return Doc(
        task_name=task_name, query=line["query"], choices=line["choices"], gold_index=line["gold"]
    )


def _task(folder: Path) -> LightevalTaskConfig:
    is_word = folder.name == "python_docs_last_word"
    return LightevalTaskConfig(
        name=folder.name,
        prompt_function=last_word if is_word else choice,
        hf_repo=str(folder),
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        metrics=[Metrics.acc_golds_likelihood if is_word else Metrics.loglikelihood_acc],
        version=1,
    )


TASKS_TABLE = [
    _task(folder)
    for folder in sorted(Path(os.environ["EKD_LIGHT_DATA"]).iterdir())
    if folder.is_dir()
]
