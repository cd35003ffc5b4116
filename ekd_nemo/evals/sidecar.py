"""What a result file of a harness does not say: which weights, what was asked, and that the file is whole."""

from typing import Any, Literal

from pydantic import Field

from ekd_nemo.config.base import PositiveInt, Strict


class EvaluatedModel(Strict):
    """The evaluated folder, as it was given, and what its content hashed to."""

    path: str
    weights_sha256: str
    tokenizer_sha256: str


class Sidecar(Strict):
    """The content of `settings/lm.<role>.<task>.json`.

    Attributes:
        request: what decides the scores, known before the run; `request_hash` names it and the tokenizer.
        results_sha256: of the harness's file that this belongs to.
        num_items: logged items by subtask.
        batch_size: as asked; `auto` was decided by memory.
        ranks: processes that shared the items.
        copied_from: the shared result that this is a copy of; null: evaluated for this folder.
        duration_s: of the task, without loading the model.
    """

    schema_version: Literal[1] = 1
    role: str
    task: str
    harness: str
    harness_version: str
    request: dict[str, Any]
    request_hash: str
    model: EvaluatedModel
    batch_size: PositiveInt | Literal["auto"]
    device: str
    ranks: PositiveInt = 1
    trust_remote_code: bool
    duration_s: float
    results_sha256: str = ""
    num_items: dict[str, int] = Field(default_factory=dict)
    copied_from: str | None = None
