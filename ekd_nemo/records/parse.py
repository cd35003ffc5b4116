"""One JSON object -> one typed line, or a `BadLineError` with the reason; never more harm."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from ekd_nemo.records.lines import MARK_KINDS, SCHEMA_VERSION, TELEMETRY_KINDS, Line

INT_MAX: Final = 2**63 - 1
TEXT_MAX: Final = 4096

LineT = TypeVar("LineT", bound=Line)
Check = Callable[[Any], bool]


class BadLineError(ValueError):
    """A line that is no record; the message says what is wrong with it."""


def _is_int(value: Any) -> bool:
    return type(value) is int and 0 <= value <= INT_MAX


def _is_float(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < float("inf")


def _is_text(value: Any) -> bool:
    return type(value) is str and len(value) <= TEXT_MAX and (value.isascii() or _is_unicode(value))


def _is_unicode(value: str) -> bool:
    """Whether it holds no lone surrogates, which JSON can spell and no file or terminal can."""
    return not any("\ud800" <= char <= "\udfff" for char in value)


def _is_texts(value: Any) -> bool:
    return type(value) is list and all(_is_text(item) for item in cast("list[Any]", value))


def _is_object(value: Any) -> bool:
    return type(value) is dict


def _is_index(value: Any) -> bool:
    return type(value) is dict and all(_is_int(n) for n in cast("dict[str, Any]", value).values())


def _is_bool(value: Any) -> bool:
    return type(value) is bool


_PLAIN: Final[dict[Any, tuple[Check, str]]] = {
    int: (_is_int, "an integer from 0 to 2^63-1"),
    float: (_is_float, "a finite number of at least 0"),
    str: (_is_text, "a text"),
    bool: (_is_bool, "true or false"),
}


def _checker(hint: Any) -> tuple[Check, str]:
    """The test for one annotation, and in words what it accepts."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        accepted = frozenset(args)
        return (lambda v: type(v) is str and v in accepted), "one of " + ", ".join(args)
    if origin is UnionType:
        (inner,) = (arg for arg in args if arg is not NoneType)
        check, words = _checker(inner)
        return (lambda v: v is None or check(v)), words + " or null"
    if args == (str,):
        return _is_texts, "a list of texts"
    if args == (str, int):
        return _is_index, "an object of integers"
    assert args == (str, object), hint
    return _is_object, "an object"


class _Schema:
    """The checks of one line kind, made once."""

    def __init__(self, kind: type[Line]) -> None:
        hints = get_type_hints(kind)
        self.kind = kind
        self.checks = [
            (f.name, *_checker(hints[f.name]), f.default is MISSING) for f in fields(kind)
        ]

    def build(self, raw: Mapping[str, Any]) -> Line:
        """The typed line; keys that this version does not know are left out."""
        values: dict[str, Any] = {}
        for name, check, words, required in self.checks:
            if name not in raw:
                if required:
                    raise BadLineError(f"{self.kind.kind}: {name} is missing")
                continue
            value = raw[name]
            if not check(value):
                raise BadLineError(f"{self.kind.kind}: {name} must be {words}")
            values[name] = value
        return self.kind(**values)


_NAMES: Final[dict[type[Line], tuple[str, ...]]] = {
    kind: tuple(f.name for f in fields(kind)) for kind in (*TELEMETRY_KINDS, *MARK_KINDS)
}
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_SCHEMAS: Final = {kind.kind: _Schema(kind) for kind in (*TELEMETRY_KINDS, *MARK_KINDS)}


def decode_object(text: bytes) -> dict[str, Any]:
    """A JSON object from one line's bytes.

    Raises: BadLineError with the reason; NaN and Infinity are refused as JSON does.
    """
    try:
        raw = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadLineError("nested too deeply") from None
    except ValueError as error:  # bad JSON, bad UTF-8, integers too long to convert
        raise BadLineError(f"not JSON: {error}") from None
    if type(raw) is not dict:
        raise BadLineError("not a JSON object")
    return cast("dict[str, Any]", raw)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def parse_object(raw: Mapping[str, Any]) -> Line:
    """The typed line of a decoded object.

    Raises: BadLineError naming the field and what it accepts.
    """
    version = raw.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BadLineError(f"schema_version must be {SCHEMA_VERSION}")
    kind = raw.get("kind")
    schema = _SCHEMAS.get(kind) if type(kind) is str else None
    if schema is None:
        raise BadLineError("kind must be one of " + ", ".join(_SCHEMAS))
    return schema.build(raw)


def encode(line: Line) -> str:
    """The line as one JSON object without a newline; absent values are null."""
    body: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "kind": line.kind}
    for name in _NAMES[type(line)]:
        body[name] = getattr(line, name)
    return _ENCODER.encode(body)
