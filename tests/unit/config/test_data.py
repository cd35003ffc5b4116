from typing import Any

import pytest
from pydantic import ValidationError

from ekd_nemo.config.data import DataBuild


def build(**changes: Any) -> DataBuild:
    return DataBuild.model_validate(
        {"sources": [{"kind": "python-docs"}], "tokenizer": "t", **changes}
    )


def test_defaults_are_those_of_the_smoke_run() -> None:
    assert (build().sequence_length, build().validation_fraction, build().seed) == (512, 0.1, 1234)


@pytest.mark.parametrize(
    ("template", "loss_on", "answers_only"),
    [
        ("none", None, False),
        ("chat", None, True),
        ("none", "answers", True),
        ("chat", "all", False),
    ],
)
def test_the_chat_template_learns_answers_unless_told(
    template: str, loss_on: str | None, answers_only: bool
) -> None:
    assert build(template=template, loss_on=loss_on).learns_answers_only is answers_only


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "at least 1"),
        ({"sources": [{"kind": "web"}]}, "'hub', 'jsonl', 'python-docs'"),
        ({"sources": [{"kind": "jsonl", "paths": []}]}, "at least 1"),
        ({"sources": [{"kind": "hub", "name": "x", "weight": 0}]}, "greater than 0"),
        (
            {"sources": [{"kind": "python-docs", "weight": 1}, {"kind": "python-docs"}]},
            "for every source or for none",
        ),
        ({"validation_fraction": 1.0}, "less than 1"),
        ({"sequence_length": 1}, "greater than or equal to 2"),
        ({"template": "alpaca"}, "'none' or 'chat'"),
        ({"sequence_lenght": 5}, "Extra inputs"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build(**changes)
