"""The strict YAML reader: what it takes, and the line it names when it does not."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekd_nemo.config.loader import load_document, load_value
from ekd_nemo.config.render import render
from ekd_nemo.errors import ConfigError

REFUSED = [
    ("a: 1\nb: 2\na: 3\n", r"x\.yaml:3: a is given twice \(first in line 1\)"),
    ("a:\n  b: 1\n  b: 2\n", r"x\.yaml:3: b is given twice"),
    ("a: &anchor 1\n", r"x\.yaml:1: anchors and aliases"),
    ("a: [1]\nb: *a\n", r"x\.yaml:2: anchors and aliases"),
    ("a: !!python/object:os.system {}\n", r"x\.yaml:1: the tag .*python/object.* is not accepted"),
    ("a: !!str 1\n", r"x\.yaml:1: the tag"),
    ("1: a\n", r"x\.yaml:1: a key must be text"),
    ("? [a]\n: 1\n", r"x\.yaml:1: a key must be text"),
    ("- 1\n- 2\n", r"x\.yaml:1: a mapping of keys is expected, not a list"),
    ("", r"x\.yaml:1: .* not an empty file"),
    ("a: 1\n---\nb: 2\n", r"x\.yaml:2: but found another document"),
    ("a: [1, 2\nb: 3\n", r"x\.yaml:2: "),
    ("a: 1e999\n", r"x\.yaml:1: 1e999 is too large"),
    ("a: " + "9" * 101 + "\n", r"x\.yaml:1: a number of more than 100 digits"),
    ("a: " + "[" * 5000 + "]" * 5000, r"x\.yaml: not YAML"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refuses_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_document(path)
    assert "\n" not in str(caught.value)


def test_names_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: cannot be read as text in UTF-8"):
        load_document(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1e-4", 1e-4),
        ("1.5", 1.5),
        (".5", 0.5),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        ("on", "on"),
        ("yes", "yes"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        (".inf", ".inf"),
        ("[1, a]", [1, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("'3'", "3"),
        ("a=b", "a=b"),
    ],
)
def test_types_scalars_by_the_core_schema(text: str, value: Any) -> None:
    got = load_value(text, "--set x")
    assert got == value
    assert type(got) is type(value)


def test_counts_lines_of_nested_keys_and_items(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# comment\na:\n  b: 1\n  c:\n    - d: 2\n    - e: 3\n")
    lines = load_document(path).lines
    assert lines[("a", "b")] == 3
    assert lines[("a", "c", 1, "e")] == 6


plain = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False, allow_infinity=False)
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
values = st.recursive(
    plain | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=15,
)


@given(data=st.dictionaries(text, values, min_size=1, max_size=4))
def test_what_is_rendered_is_read_back(data: dict[str, Any]) -> None:
    assert load_value(render(data), "rendered") == data
