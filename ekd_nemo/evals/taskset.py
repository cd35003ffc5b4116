"""Which task files the harness gets: the built-in ones over held-out text, or a user's folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, cast

import yaml

from ekd_nemo.errors import ConfigError
from ekd_nemo.evals.heldout import items_of
from ekd_nemo.evals.model_folder import hash_files
from ekd_nemo.records.atomic import write_text

BUILT_IN: Final = ("python_docs_bits_per_byte", "python_docs_last_word")
_LOCAL_LOADERS: Final = ("json", "csv", "parquet", "text", "arrow")
_DATA_SUFFIXES: Final = (".json", ".jsonl", ".csv", ".parquet", ".txt", ".arrow", ".py")


@dataclass(frozen=True)
class Split:
    """Which python-docs text is held out, and where that was read."""

    seed: int
    fraction: float
    origin: str


@dataclass(frozen=True)
class TaskSet:
    """The tasks that were asked for, and the folders that define them.

    `sha256`: for each asked task the hash of the files that define it and of its data; the harness's own tasks, which
    its version tells apart, share that of the word `harness`.
    `local`: no task needs a hub. `custom_tasks`, `data`: of lighteval, see `Request`.
    """

    names: tuple[str, ...]
    include_paths: tuple[Path, ...]
    sha256: Mapping[str, str]
    local: bool
    include_defaults: bool
    custom_tasks: str | None = None
    data: str | None = None


class _TaskLoader(yaml.SafeLoader):
    """YAML as lm-eval writes it: `!function` names code, which is left alone here."""


_TaskLoader.add_constructor("!function", lambda loader, node: str(node.value))


def gather_tasks(
    names: Sequence[str], include_path: Path | None, split: Split, store: Path
) -> TaskSet:
    """Find or make the files of the asked tasks.

    Args:
        names: tasks or groups; those of `BUILT_IN` are generated, the rest come from `include_path` or the harness.
        include_path: a user's folder of task files; None: there is none.
        split: what the built-in tasks may take.
        store: where generated tasks lie, e.g. `assets/eval/tasks`.

    Raises:
        ConfigError: if the folder or one of its YAML files cannot be read.
        DataError: if the split holds out nothing.
    """
    user = {} if include_path is None else _read_folder(include_path)
    made = {
        name: built_in(name, split, store)
        for name in names
        if name in BUILT_IN and name not in user
    }
    hashes = {name: folder.name for name, folder in made.items()}
    own = [name for name in names if name in user]
    if include_path is not None and own:
        digest = _folder_hash(include_path)
        hashes.update(dict.fromkeys(own, digest))
    foreign = [name for name in names if name not in hashes]
    hashes.update(dict.fromkeys(foreign, sha256(b"harness").hexdigest()[:16]))
    folders: list[Path] = list(dict.fromkeys(made.values()))
    if include_path is not None:
        folders.append(include_path)
    local = not foreign and all(_is_local(task) for task in user.values() if own)
    return TaskSet(tuple(names), tuple(folders), hashes, local, bool(foreign))


def built_in(name: str, split: Split, store: Path) -> Path:
    """A folder with one task's YAML and data, named by the hash of both; made if it is not there."""
    template = files("ekd_nemo.evals").joinpath("tasks", f"{name}.yaml").read_text()
    lines = items_text(name, split)
    digest = sha256(f"{template}\0{lines}".encode()).hexdigest()[:16]
    folder = store / digest
    data = folder / f"{name}.jsonl"
    config = {
        **yaml.safe_load(template),
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    keep(data, lines)
    keep(folder / f"{name}.yaml", yaml.safe_dump(config, sort_keys=False))
    return folder


def items_text(name: str, split: Split) -> str:
    """The items of a built-in task, one JSON object a line."""
    items = items_of(name, split.seed, split.fraction)
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def keep(path: Path, text: str) -> None:
    """Write the file unless it says so already: a store that was moved or damaged is put right."""
    if not path.is_file() or path.read_text() != text:
        write_text(path, text)


def _read_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Every task and group that the YAML files of a folder define, by name."""
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such folder; --include-path takes a folder of lm-eval task files (*.yaml)"
        )
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        try:
            config = yaml.load(path.read_text(), _TaskLoader)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: not a task file: {' '.join(str(error).split())}") from error
        if isinstance(config, dict):
            body = cast("dict[str, Any]", config)
            name = body.get("task") if isinstance(body.get("task"), str) else body.get("group")
            if isinstance(name, str):
                found[name] = body
    if not found:
        raise ConfigError(
            f"{folder}: no task in it; --include-path takes a folder of lm-eval task files (*.yaml)"
        )
    return found


def _is_local(task: Mapping[str, Any]) -> bool:
    path = task.get("dataset_path")
    return path is None or path in _LOCAL_LOADERS or Path(str(path)).is_dir()


def _folder_hash(folder: Path) -> str:
    """Over every task file, script and data file of a folder, with their paths inside it."""
    listed = [
        p
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix in (".yaml", *_DATA_SUFFIXES)
    ]
    names = "\n".join(str(path.relative_to(folder)) for path in listed)
    return sha256(f"{names}\0{hash_files(listed)}".encode()).hexdigest()[:16]
