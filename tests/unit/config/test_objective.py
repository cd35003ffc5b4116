"""The objective's weights, and which sections each method takes."""

import pytest
from pydantic import ValidationError

from ekd_nemo.config.objective import Objective


def test_plain_fine_tuning_is_cross_entropy_alone() -> None:
    objective = Objective()
    assert objective.families == ()
    assert objective.weight_ce == 1.0
    assert objective.weight_of("response") == 0.0


def test_alpha_mixes_one_family_with_cross_entropy() -> None:
    objective = Objective.model_validate({"alpha": 0.75, "response": {"temperature": 2.0}})
    assert objective.weight_ce == 0.25
    assert objective.weight_of("response") == 0.75


def test_weights_stand_as_given_without_alpha() -> None:
    objective = Objective.model_validate(
        {"w_ce": 0.5, "response": {"weight": 2.0}, "relation": {"weight": 0.1}}
    )
    assert objective.families == ("response", "relation")
    assert (objective.weight_ce, objective.weight_of("response")) == (0.5, 2.0)
    assert objective.weight_of("relation") == 0.1


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"alpha": 0.5}, "exactly one"),
        ({"alpha": 0.5, "response": {}, "relation": {}}, "exactly one"),
        ({"alpha": 0.5, "w_ce": 0.5, "response": {}}, "no w_ce"),
        ({"alpha": 0.5, "response": {"weight": 2.0}}, "give one of them"),
        ({"alpha": 1.5, "response": {}}, "less than or equal to 1"),
        ({"response": {"temperature": 0.0}}, "greater than 0"),
        ({"response": {"temprature": 2.0}}, "Extra inputs"),
    ],
)
def test_what_does_not_add_up_is_refused(section: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Objective.model_validate(section)
