"""Pydantic's errors as one line: where, what, and what is accepted."""

import difflib
import json
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ekd_nemo.config.loader import KeyPath
from ekd_nemo.config.overrides import dotted
from ekd_nemo.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def validate(
    model: type[Model], data: dict[str, Any], where: Callable[[KeyPath], str], what: str
) -> Model:
    """Make `model` of plain data, strictly: no text for a number, no number for a truth value.

    Args:
        model: the pydantic model.
        data: what YAML gave: mappings, lists, text, numbers, truth values and null.
        where: the place of a key for messages, as `recipes/x.yaml:12` or `--set a.b=c`.
        what: what the whole is called in messages, as `the recipe`.
    Raises: ConfigError in one line, for the first thing that is wrong; further ones are counted.
    """
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        details = sorted(error.errors(include_url=False), key=_union_noise)
        first = details[0]
        path = _path_in(data, first["loc"])
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise ConfigError(
            f"{where(path)}: {_message(model, data, first, path, what)}{more}"
        ) from error


def _union_noise(detail: ErrorDetails) -> int:
    """An unknown key first: in a section that may be of several kinds it says most."""
    return 0 if detail["type"] == "extra_forbidden" else 1


def _path_in(data: Any, loc: tuple[str | int, ...]) -> KeyPath:
    """The part of pydantic's location that is in the data: tags of unions are dropped, a missing last key is kept."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        if _has(data, part):
            data, path = data[part], [*path, part]
        elif index == len(loc) - 1 and _is_section(data):
            path = [*path, part]
    return tuple(path)


def _is_section(data: Any) -> bool:
    return isinstance(data, dict)


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(cast("list[Any]", data))


def _message(
    model: type[BaseModel], data: Any, detail: ErrorDetails, path: KeyPath, what: str
) -> str:
    kind, name = detail["type"], dotted(path) or what
    parent = dotted(path[:-1]) or what
    accepted = accepted_keys(model, path[:-1], data)
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(path[-1]), accepted, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{name} is not a key of {parent}; {hint}accepted: {', '.join(accepted)}"
    if kind == "missing":
        return f"{name} is missing from {parent}; its keys: {', '.join(accepted)}"
    context: dict[str, Any] = detail.get("ctx", {})
    if kind == "value_error":
        return f"{name}: {context['error']}"
    expected = (
        f"accepted: {context['expected']}" if kind == "literal_error" else _lower(detail["msg"])
    )
    return f"{name} is {_shown(detail['input'])}; {expected}"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def accepted_keys(model: type[BaseModel], path: Sequence[str | int], data: Any) -> list[str]:
    """The keys that a section takes, in the order of its model; [] where the section is not a model."""
    candidates: list[Any] = [model]
    for part in path:
        candidates = [inner for candidate in candidates for inner in _step(candidate, part)]
        data = data[part] if _has(data, part) else None
        candidates = [candidate for candidate in candidates if _tags_agree(candidate, data)]
    keys = [
        key for candidate in candidates if _is_model(candidate) for key in candidate.model_fields
    ]
    return list(dict.fromkeys(keys))


def _step(candidate: Any, part: str | int) -> Iterator[Any]:
    """The types that the member `part` of a type may have."""
    if _is_model(candidate):
        field = candidate.model_fields.get(part)
        if field is not None:
            yield from _unwrap(field.annotation)
    elif get_origin(candidate) in (tuple, list) and isinstance(part, int):
        yield from _unwrap(get_args(candidate)[0])
    elif get_origin(candidate) is dict:
        yield from _unwrap(get_args(candidate)[1])


def _unwrap(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _unwrap(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _unwrap(member)
    else:
        yield annotation


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, BaseModel)


def _tags_agree(candidate: Any, data: Any) -> bool:
    """Whether the literal fields of a model (the tags of a union) take what the data gives for them."""
    if not _is_model(candidate) or not isinstance(data, dict):
        return True
    given = cast("dict[str, Any]", data)
    literals = {
        name: get_args(field.annotation)
        for name, field in candidate.model_fields.items()
        if get_origin(field.annotation) is Literal
    }
    if any(given.get(name, taken[0]) in taken for name, taken in literals.items()):
        return True
    return not literals
