"""Plain data as YAML text: one spelling for one value, so that a hash of the text is a hash of the data.

What `render` writes, `load_value` reads back as the same data.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

import yaml

from ekd_nemo.config.loader import KeyPath

Comment = Callable[[KeyPath], str]

# Text that needs no quotes: it cannot be read as a number, a truth value or null, nor as YAML's punctuation.
_PLAIN = re.compile(r"[A-Za-z./][A-Za-z0-9_./-]*( [A-Za-z0-9_./-]+)*")
_RESERVED = {"null", "true", "false", ".", "..", "---", "..."}
_COMMENT_COLUMN = 56


def render(data: dict[str, Any], comment: Comment | None = None) -> str:
    """Write a mapping as block YAML; lists of plain values stay on one line.

    Args:
        data: mappings, lists, text, numbers, truth values and null.
        comment: the remark for a line that holds a value, or "" for none.
    Returns: text that ends with a newline.
    """
    lines = [
        _remarked(line, comment(path) if comment and path else "")
        for path, line in _mapping(data, (), "")
    ]
    return "".join(f"{line}\n" for line in lines)


def _remarked(line: str, remark: str) -> str:
    return f"{line.ljust(_COMMENT_COLUMN)}  # {remark}" if remark else line


def _mapping(data: dict[str, Any], path: KeyPath, indent: str) -> Iterator[tuple[KeyPath, str]]:
    for key, value in data.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            yield (), f"{indent}{scalar(key)}:"
            yield from _mapping(cast("dict[str, Any]", value), here, indent + "  ")
        elif isinstance(value, list) and any(
            isinstance(item, dict) for item in cast("list[Any]", value)
        ):
            yield (), f"{indent}{scalar(key)}:"
            yield from _items(cast("list[Any]", value), here, indent)
        else:
            yield here, f"{indent}{scalar(key)}: {_flow(value)}"


def _items(items: list[Any], path: KeyPath, indent: str) -> Iterator[tuple[KeyPath, str]]:
    for index, item in enumerate(items):
        here = (*path, index)
        if not isinstance(item, dict) or not item:
            yield here, f"{indent}- {_flow(item)}"
            continue
        for number, (inner, line) in enumerate(
            _mapping(cast("dict[str, Any]", item), here, indent + "  ")
        ):
            yield inner, f"{indent}- {line[len(indent) + 2 :]}" if number == 0 else line


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(
            f"{scalar(key)}: {_flow(item)}" for key, item in cast("dict[str, Any]", value).items()
        )
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(_flow(item) for item in cast('list[Any]', value))}]"
    return scalar(value)


def scalar(value: str | float | bool | None) -> str:
    """One value as YAML; text in quotes only where it needs them."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    return str(yaml.dump(value, default_style='"', allow_unicode=True, width=2**31)).removesuffix(
        "\n"
    )
