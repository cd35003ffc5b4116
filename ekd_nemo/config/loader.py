"""Strict YAML with the line of every key.

Accepted: one mapping of the YAML 1.2 core schema. Refused, with file and line: duplicate keys, anchors, aliases, tags,
several documents, keys that are not text. Unlike YAML 1.1, `1e-4` is a number, and `on`, `yes` and `12:30` are text.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from ekd_nemo.errors import ConfigError

KeyPath = tuple[str | int, ...]

_CORE_SCHEMA = (
    ("tag:yaml.org,2002:null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
)


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's parser with the resolution of scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's class attribute

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse anchors, aliases and tags before a node is made of them."""
        event = cast("Any", self.peek_event())  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not accepted", problem_mark=event.start_mark
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {event.tag} is not accepted", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


for _tag, _pattern, _first in _CORE_SCHEMA:
    _CoreLoader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)


@dataclass(frozen=True)
class Document:
    """A YAML mapping and the line of each of its keys and list items, counted from 1."""

    data: dict[str, Any]
    lines: dict[KeyPath, int]
    path: Path


def load_document(path: Path) -> Document:
    """Read one YAML mapping from a file.

    Args:
        path: an existing file in UTF-8.
    Returns: the mapping, with the line of every key.
    Raises: ConfigError, as `file:line: what is wrong`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text in UTF-8: {one_line(error)}") from error
    data, lines = _construct(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: a mapping of keys is expected, not {_kind(data)}")
    return Document(cast("dict[str, Any]", data), lines, path)


def load_value(text: str, where: str) -> Any:
    """Read a scalar, list or mapping as YAML types it: `3`, `1e-4`, `[a, b]`, `{steps: 4}`, `null`.

    Raises: ConfigError that begins with `where`.
    """
    return _construct(text, where, with_line=False)[0]


def one_line(error: BaseException) -> str:
    """The message of an error with its line breaks folded."""
    return " ".join(str(error).split())


def _construct(text: str, where: str, with_line: bool = True) -> tuple[Any, dict[KeyPath, int]]:
    lines: dict[KeyPath, int] = {}
    loader = _CoreLoader(text)
    try:
        node = loader.get_single_node()
        return (None, lines) if node is None else (_value(loader, node, (), lines), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}" if mark is not None and with_line else where
        raise ConfigError(f"{place}: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{where}: not YAML: {one_line(error)}") from error
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _value(loader: _CoreLoader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return {
            key: _value(loader, child, (*path, key), lines)
            for key, child in _items(node, path, lines)
        }
    if isinstance(node, yaml.SequenceNode):
        return [
            _value(loader, child, (*path, index), lines) for index, child in enumerate(node.value)
        ]
    return _scalar(cast("yaml.ScalarNode", node))


def _items(
    node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int]
) -> Iterator[tuple[str, yaml.Node]]:
    seen: set[str] = set()
    for key_node, child in node.value:
        mark = key_node.start_mark
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
            raise yaml.MarkedYAMLError(problem="a key must be text", problem_mark=mark)
        key = key_node.value
        if key in seen:
            first = lines[(*path, key)]
            raise yaml.MarkedYAMLError(
                problem=f"{key} is given twice (first in line {first})", problem_mark=mark
            )
        seen.add(key)
        lines[(*path, key)] = mark.line + 1
        yield key, child


def _scalar(node: yaml.ScalarNode) -> str | int | float | bool | None:
    kind, text = node.tag.rpartition(":")[2], cast("str", node.value)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int" and len(text) > 100:
        raise yaml.MarkedYAMLError(
            problem="a number of more than 100 digits", problem_mark=node.start_mark
        )
    if kind == "int":
        return int(text)
    if kind == "float":
        value = float(text)
        if math.isinf(value):
            raise yaml.MarkedYAMLError(
                problem=f"{text} is too large a number", problem_mark=node.start_mark
            )
        return value
    return text


def _kind(value: object) -> str:
    if value is None:
        return "an empty file"
    return "a list" if isinstance(value, list) else "a single value"
