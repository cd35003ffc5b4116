"""`--set`: what it changes, and what it refuses."""

from typing import Any

import pytest

from ekd_nemo.config.loader import KeyPath
from ekd_nemo.config.overrides import apply_override, parse_override
from ekd_nemo.errors import ConfigError


def overridden(data: dict[str, Any], text: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    origins: dict[KeyPath, str] = {}
    apply_override(data, origins, text)
    return data, origins


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=3", {"a": {"b": 3}, "c": [{"d": 1}, {"d": 2}], "e": None}),
        ("a.x=1e-3", {"a": {"b": 1, "x": 1e-3}, "c": [{"d": 1}, {"d": 2}], "e": None}),
        ("c.1.d=9", {"a": {"b": 1}, "c": [{"d": 1}, {"d": 9}], "e": None}),
        ("c=[]", {"a": {"b": 1}, "c": [], "e": None}),
        ("e.f.g=x=y", {"a": {"b": 1}, "c": [{"d": 1}, {"d": 2}], "e": {"f": {"g": "x=y"}}}),
        ("a=null", {"a": None, "c": [{"d": 1}, {"d": 2}], "e": None}),
    ],
)
def test_sets_one_value(text: str, expected: dict[str, Any]) -> None:
    data, origins = overridden({"a": {"b": 1}, "c": [{"d": 1}, {"d": 2}], "e": None}, text)
    assert data == expected
    assert set(origins.values()) == {f"--set {text}"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.b", r"--set a\.b: expected key=value"),
        ("=3", r"--set =3: expected key=value"),
        ("a..b=3", r"--set a\.\.b=3: expected key=value"),
        ("a.b.c=3", r"--set a\.b\.c=3: a\.b is a single value \(1\) and has no key c"),
        ("c.2.d=3", r"--set c\.2\.d=3: c is a list of 2; accepted: an index from 0 to 1"),
        ("c.x=3", r"c is a list of 2; accepted: an index from 0 to 1"),
        ("l.0=3", r"l is a list of 0; accepted: no index: the list is empty; set it whole"),
        ("a.b=[1", r"--set a\.b=\[1: "),
        ("a.b=!!int 3", r"--set a\.b=!!int 3: the tag"),
        ("a.b={x: 1, x: 2}", r"x is given twice"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        overridden({"a": {"b": 1}, "c": [1, 2], "l": []}, text)


def test_parse_keeps_the_first_equals_sign() -> None:
    assert parse_override("a.b=c=d") == (("a", "b"), "c=d")
