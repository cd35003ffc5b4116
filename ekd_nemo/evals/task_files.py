"""A user's folder of lm-eval task files: what it defines, whether that needs a hub, and what names its content."""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast

import yaml

from ekd_nemo.errors import ConfigError
from ekd_nemo.evals.model_folder import hash_files

_LOCAL_LOADERS: Final = ("json", "csv", "parquet", "text", "arrow")
# `yaml` without a dot as well: lm-eval's own folders name what their tasks include `_default_template_yaml`.
_ENDINGS: Final = ("yaml", ".json", ".jsonl", ".csv", ".parquet", ".txt", ".arrow", ".py")
Task = dict[str, Any]


class _TaskLoader(yaml.SafeLoader):
    """YAML as lm-eval writes it: `!function` names code, which is left alone here."""


_TaskLoader.add_constructor("!function", lambda loader, node: str(node.value))


def read_folder(folder: Path) -> dict[str, Task]:
    """Every task and group that the YAML files of a folder define, by name, with what they include.

    Raises:
        ConfigError: if it is no folder, holds no task, or one of its files cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder; --include-path takes a folder of lm-eval task files (*.yaml)"
        )
    found: dict[str, Task] = {}
    for path in sorted(folder.rglob("*.yaml")):
        body = _read(path, ())
        name = body.get("task") if isinstance(body.get("task"), str) else body.get("group")
        if isinstance(name, str):
            found[name] = body
    if not found:
        raise ConfigError(
            f"{folder}: no task in it; --include-path takes a folder of lm-eval task files (*.yaml)"
        )
    return found


def _read(path: Path, includers: tuple[Path, ...]) -> Task:
    """One file over what it includes, as lm-eval merges them; empty if it holds no mapping."""
    if path in includers:
        raise ConfigError(f"{path}: it includes itself")
    try:
        content = yaml.load(path.read_text(), _TaskLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        asked = f" (included by {includers[-1]})" if includers else ""
        raise ConfigError(
            f"{path}: not a task file{asked}: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        return {}
    body = cast("Task", content)
    included = body.pop("include", [])
    whole: Task = {}
    for name in cast("list[str]", included if isinstance(included, list) else [included]):
        whole |= _read(path.parent / name, (*includers, path))
    return whole | body


def reached(names: Iterable[str], tasks: Mapping[str, Task]) -> set[str]:
    """The names, and those of all parts of the groups among them."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_parts(tasks.get(name, {})))
    return found


def _parts(body: Task) -> Iterator[str]:
    """The names that a group lists; parts that are defined in its own file have none to look for."""
    if isinstance(body.get("task"), list):
        yield from (part for part in body["task"] if isinstance(part, str))


def tags(tasks: Mapping[str, Task]) -> set[str]:
    """Names under which several of the tasks can be asked for."""
    found: set[str] = set()
    for body in tasks.values():
        tag: object = body.get("tag") or []
        found |= {tag} if isinstance(tag, str) else set(cast("list[str]", tag))
    return found


def is_local(task: Task) -> bool:
    """Whether its data lie on this machine; a group has none."""
    path = task.get("dataset_path")
    return path is None or path in _LOCAL_LOADERS or Path(str(path)).is_dir()


def folder_hash(folder: Path, tasks: Mapping[str, Task]) -> str:
    """Over task files, scripts and data of a folder, with their paths inside it, and over data that lie elsewhere."""
    listed = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name.endswith(_ENDINGS)]
    inside = {path.resolve() for path in listed}
    outside = {path for task in tasks.values() for path in _data_files(task)} - inside
    names = "\n".join(str(path.relative_to(folder)) for path in listed)
    return sha256(f"{names}\0{hash_files([*listed, *sorted(outside)])}".encode()).hexdigest()[:16]


def _data_files(task: Task) -> Iterator[Path]:
    """The files that a task names as its data, where they are on this machine."""
    options = task.get("dataset_kwargs")
    named = cast("Task", options).get("data_files") if isinstance(options, dict) else None
    values = cast("Task", named).values() if isinstance(named, dict) else [named]
    for value in values:
        listed = cast("list[object]", value if isinstance(value, list) else [value])
        yield from (Path(v).resolve() for v in listed if isinstance(v, str) and Path(v).is_file())
