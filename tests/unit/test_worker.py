"""The worker's frame: verbs, errors, exit codes."""

import sys
import types

import pytest

from ekd_nemo import worker
from ekd_nemo.errors import EXIT_USER, ConfigError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Register a verb that does what the test says, in a process that stays as loud as it was."""

    def register(function):
        module = types.ModuleType("verb_of_a_test")
        module.main = function
        monkeypatch.setitem(sys.modules, "verb_of_a_test", module)
        monkeypatch.setitem(worker.VERBS, "try", "verb_of_a_test:main")

    monkeypatch.setattr(worker, "quieten", lambda: None)
    monkeypatch.setattr(worker, "OTHER_RANKS_WAIT_S", 0.0)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("EKD_DEBUG", raising=False)
    return register


def fail(argv: list[str]) -> None:
    raise ConfigError("recipe.yaml:3: steps is 0")


def test_verb_gets_the_rest_and_gives_its_code(verb) -> None:
    verb(len)
    assert worker.run(["try", "a", "b"]) == 2
    verb(lambda argv: None)
    assert worker.run(["try"]) == 0


@pytest.mark.parametrize("argv", [[], ["no-such-verb"], ["--debug"]])
def test_unknown_verb_lists_the_known(argv, capsys) -> None:
    assert worker.run(argv) == EXIT_USER
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cache, convert, data, ept, eval, train" in said
    assert "train" in said


def test_error_is_one_line(verb, capsys) -> None:
    verb(fail)
    assert worker.run(["try"]) == EXIT_USER
    assert capsys.readouterr().err == "error: recipe.yaml:3: steps is 0\n"


def test_other_rank_names_itself(verb, capsys, monkeypatch) -> None:
    verb(fail)
    monkeypatch.setenv("RANK", "3")
    assert worker.run(["try"]) == EXIT_USER
    assert capsys.readouterr().err == "error: recipe.yaml:3: steps is 0 (rank 3)\n"


def test_debug_shows_where(verb, capsys) -> None:
    verb(fail)
    assert worker.run(["--debug", "try"]) == EXIT_USER
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("error: recipe.yaml:3: steps is 0\n")


def test_other_exceptions_pass(verb) -> None:
    verb(lambda argv: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        worker.run(["try"])
