"""What a library raises becomes one line, with what it hides."""

import pytest

from ekd_nemo.errors import RunError, UserError
from ekd_nemo.harness.events import guarded


def hide() -> None:
    try:
        raise OSError(28, "No space left on device")
    except OSError as error:
        raise ValueError("while generating\nthe data set") from error


def test_the_first_cause_is_told_as_well() -> None:
    with pytest.raises(RunError) as caught:
        guarded("t on m", hide)
    assert str(caught.value) == (
        "t on m: ValueError: while generating the data set (OSError: [Errno 28] No space left on device)"
    )


def test_a_cause_that_is_told_already_is_not_told_twice() -> None:
    def repeat() -> None:
        raise ValueError("unreadable: no b") from OSError("no b")

    with pytest.raises(RunError, match="^x: ValueError: unreadable: no b$"):
        guarded("x", repeat)


def test_errors_of_ekd_pass_as_they_are() -> None:
    def refuse() -> None:
        raise UserError("accepted are a, b")

    with pytest.raises(UserError, match="^accepted are a, b$"):
        guarded("x", refuse)
