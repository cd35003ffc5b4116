"""`--set a.b=c`: values put over a recipe before it is validated."""

from collections.abc import MutableMapping, Sequence
from typing import Any, cast

from ekd_nemo.config.loader import KeyPath, load_value
from ekd_nemo.errors import ConfigError


def dotted(path: Sequence[str | int]) -> str:
    """A path of keys and list indices as it is written: `sources.0.name`."""
    return ".".join(str(part) for part in path)


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split `a.b=c` into its keys and its value, typed as YAML types it.

    Raises: ConfigError that names `--set` and the text.
    """
    key, equals, value = text.partition("=")
    parts = tuple(part.strip() for part in key.split("."))
    if not equals or not all(parts):
        raise ConfigError(
            f"--set {text}: expected key=value, with dots between nested keys: train.steps=20"
        )
    return parts, load_value(value, f"--set {text}")


def apply_override(data: dict[str, Any], origins: MutableMapping[KeyPath, str], text: str) -> None:
    """Put one override into `data`, in place, and note it as the origin of what it set.

    Sections that are absent or null are made; a list index must exist. Unknown keys are found by validation.

    Raises: ConfigError that names `--set` and the text.
    """
    parts, value = parse_override(text)
    where = f"--set {text}"
    node: Any = data
    path: KeyPath = ()
    for part in parts[:-1]:
        key = _key(node, part, path, where)
        path = (*path, key)
        if isinstance(node, dict) and cast("dict[str, Any]", node).get(part) is None:
            node[part] = {}
            origins[path] = where
        node = cast("Any", node)[key]
    key = _key(node, parts[-1], path, where)
    node[key] = value
    set_origins(origins, (*path, key), value, where)


def set_origins(
    origins: MutableMapping[KeyPath, str], path: KeyPath, value: Any, where: str
) -> None:
    """Note `where` as the origin of a value and of all inside it; origins of what stood there before are dropped."""
    for old in [old for old in origins if old[: len(path)] == path]:
        del origins[old]
    origins[path] = where
    for key, child in _children(value):
        set_origins(origins, (*path, key), child, where)


def _children(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return list(cast("dict[str | int, Any]", value).items())
    return list(enumerate(cast("list[Any]", value))) if isinstance(value, list) else []


def _key(node: Any, part: str, path: KeyPath, where: str) -> str | int:
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise ConfigError(
            f"{where}: {dotted(path)} is a single value ({node!r}) and has no key {part}"
        )
    length = len(cast("list[Any]", node))
    if not part.isdecimal() or int(part) >= length:
        accepted = (
            f"an index from 0 to {length - 1}"
            if length
            else "no index: the list is empty; set it whole"
        )
        raise ConfigError(f"{where}: {dotted(path)} is a list of {length}; accepted: {accepted}")
    return int(part)
