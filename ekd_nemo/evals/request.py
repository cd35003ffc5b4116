"""What is asked of the harness: the contract between the command line and the worker process."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, Literal

from pydantic import Field

from ekd_nemo.config.base import Strict

LM_EVAL: Final = "lm-eval"
LIGHTEVAL: Final = "lighteval"
SEED: Final = (
    1234  # of few-shot choice and of the harness's own generators: its defaults are 0 and 1234
)


class LmSettings(Strict):
    """Settings that teacher and student share.

    Attributes:
        limit: items per task, from the first; None: all.
        num_fewshot: None: as `shots` or the task has it.
        shots: of tasks that a named suite fixes.
        dtype: `float32`, `bfloat16`, or `auto`: float32 on a CPU, bfloat16 on a GPU.
        device: `cpu`, `cuda`, or `auto`: a GPU if there is one.
        batch_size: sequences at once, or `auto`: as many as the memory holds; changes scores by rounding only, so it
            is recorded and not compared.
    """

    tasks: tuple[str, ...]
    limit: int | None = None
    num_fewshot: int | None = None
    shots: dict[str, int] = Field(default_factory=dict)
    batch_size: int | Literal["auto"] = 4
    dtype: str = "auto"
    device: str = "auto"
    apply_chat_template: bool = False
    trust_remote_code: bool = False

    def shots_of(self, task: str) -> int | None:
        """Examples in the prompt; None: as the task has it."""
        return self.shots.get(task) if self.num_fewshot is None else self.num_fewshot

    def identity(
        self, task: str, task_files_sha256: str, harness: str, version: str
    ) -> dict[str, Any]:
        """What decides the scores of one task, known before it is run."""
        return {
            "harness": harness,
            "harness_version": version,
            "task": task,
            "task_files_sha256": task_files_sha256,
            "limit": self.limit,
            "num_fewshot": self.shots_of(task),
            "dtype": self.dtype,
            "device": self.device,
            "apply_chat_template": self.apply_chat_template,
            "seed": SEED,
        }


class Job(Strict):
    """One model and the tasks that it still has to do; results go to a folder of its own."""

    name: str
    model: str
    tasks: tuple[str, ...]
    out: str


class Request(Strict):
    """The content of the file that the worker reads."""

    settings: LmSettings
    include_paths: tuple[str, ...]
    include_defaults: bool  # whether the harness's own tasks are looked through as well (10 s)
    jobs: tuple[Job, ...]
    custom_tasks: str | None = None  # a file of lighteval tasks
    data: str | None = None  # items of the built-in tasks as lighteval reads them
    cache: str | None = (
        None  # where lighteval keeps answers: a new folder each time, it would show stale ones
    )


def canonical_hash(value: Mapping[str, Any]) -> str:
    """First sixteen digits of the SHA-256 of the canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode()).hexdigest()[:16]
