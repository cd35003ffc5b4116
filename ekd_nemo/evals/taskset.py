"""Which task files the harness gets: the built-in ones over held-out text, or a user's folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml

from ekd_nemo.evals.heldout import WORD_CHOICE, items_of
from ekd_nemo.evals.local_tasks import Item, choice_task, chosen
from ekd_nemo.evals.storing import storing
from ekd_nemo.evals.task_files import folder_hash, is_local, reached, read_folder, tags
from ekd_nemo.records.atomic import write_text

BUILT_IN: Final = ("python_docs_bits_per_byte", "python_docs_last_word", WORD_CHOICE)
DEFAULT: Final = BUILT_IN[:2]


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


@storing("task files")
def gather_tasks(
    names: Sequence[str],
    include_path: Path | None,
    split: Split,
    store: Path,
    task_data: Path | None = None,
) -> TaskSet:
    """Find or make the files of the asked tasks.

    Args:
        names: tasks or groups; those of `BUILT_IN` are generated, the rest come from `include_path` or the harness.
        include_path: a user's folder of task files; None: there is none.
        split: what the built-in tasks may take.
        store: where generated tasks lie, e.g. `assets/eval/tasks`.
        task_data: a folder of data for the tasks of `local_tasks`; None: there is none.

    Raises:
        ConfigError: if the folder or one of its YAML files cannot be read.
        UserError: for a task over local data that is not there.
        DataError: if the split holds out nothing, or the folder of data is not one.
        RunError: if the files cannot be written.
    """
    user = {} if include_path is None else read_folder(include_path)
    made = {
        name: built_in(name, split, store)
        for name in names
        if name in BUILT_IN and name not in user
    }
    for name, task in chosen([name for name in names if name not in user], task_data).items():
        made[name] = placed(name, task.config, task.items, store)
    hashes = {name: folder.name for name, folder in made.items()}
    labels = tags(user)
    own = [name for name in names if name in user or name in labels]
    if include_path is not None and own:
        hashes.update(dict.fromkeys(own, folder_hash(include_path, user)))
    foreign = [name for name in names if name not in hashes]
    hashes.update(dict.fromkeys(foreign, sha256(b"harness").hexdigest()[:16]))
    folders: list[Path] = list(dict.fromkeys(made.values()))
    if include_path is not None:
        folders.append(include_path)
    # Parts of the user's groups may be the harness's own as well.
    defaults = bool(reached(names, user) - user.keys() - labels - made.keys())
    local = not defaults and all(is_local(task) for task in user.values() if own)
    return TaskSet(tuple(names), tuple(folders), hashes, local, defaults)


def built_in(name: str, split: Split, store: Path) -> Path:
    """The folder of a built-in task; made if it is not there."""
    items = items_of(name, split.seed, split.fraction)
    if name == WORD_CHOICE:
        task = choice_task(name, items)
        return placed(name, task.config, task.items, store)
    template = files("ekd_nemo.evals").joinpath("tasks", f"{name}.yaml").read_text()
    return placed(name, yaml.safe_load(template), {"test": items}, store)


def placed(
    name: str, config: Mapping[str, Any], items: Mapping[str, Sequence[Item]], store: Path
) -> Path:
    """A folder with a task's YAML and its items by split, named by the hash of both; made if it is not there."""
    lines = {split: as_lines(found) for split, found in items.items()}
    content = "\0".join([yaml.safe_dump(dict(config)), *lines, *lines.values()])
    folder = store / sha256(content.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    suffixes = {split: "" if split == "test" else f".{split}" for split in lines}
    data = {split: folder / f"{name}{suffix}.jsonl" for split, suffix in suffixes.items()}
    for split, path in data.items():
        keep(path, lines[split])
    whole = {
        **config,
        "dataset_kwargs": {"data_files": {s: str(path.resolve()) for s, path in data.items()}},
    }
    keep(folder / f"{name}.yaml", yaml.safe_dump(whole, sort_keys=False))
    return folder


def items_text(name: str, split: Split) -> str:
    """The items of a built-in task, one JSON object a line."""
    return as_lines(items_of(name, split.seed, split.fraction))


def as_lines(items: Sequence[Item]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def keep(path: Path, text: str) -> None:
    """Write the file unless it says so already: a store that was moved or damaged is put right."""
    if not path.is_file() or path.read_text() != text:
        write_text(path, text)
