"""The built-in task as lighteval has it: the same items and the same question as its lm-eval file.

A custom task file, imported by lighteval in its own environment; EKD_LIGHT_DATA names the folder of the items.
Not covered: bits per byte; the rolling log-likelihood of lighteval 0.13.0 scores each token by the prediction after it.
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


TASKS_TABLE = [
    LightevalTaskConfig(
        name="python_docs_last_word",
        prompt_function=last_word,
        hf_repo=str(Path(os.environ["EKD_LIGHT_DATA"]) / "python_docs_last_word"),
        hf_subset="default",
        hf_avail_splits=["test"],
        evaluation_splits=["test"],
        metrics=[Metrics.acc_golds_likelihood],
        version=1,
    )
]
