"""`ekd eval light`: lighteval as an engine of `evaluate`, and the tasks that it gets."""

from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from ekd_nemo.errors import UserError
from ekd_nemo.evals.harnesses import LIGHT
from ekd_nemo.evals.light_env import LightEnv
from ekd_nemo.evals.lm import Engine
from ekd_nemo.evals.taskset import Split, TaskSet, items_text, keep

# lighteval's rolling log-likelihood is not one, so bits per byte is lm-eval's alone.
BUILT_IN: Final = ("python_docs_last_word",)


def lighteval(env: LightEnv) -> Engine:
    """Lighteval in its own environment."""
    return Engine(
        LIGHT, env.versions["lighteval"], (str(env.python), str(_harness_file("light_runner.py")))
    )


def gather_light_tasks(
    names: Sequence[str], custom_tasks: Path | None, split: Split, store: Path
) -> TaskSet:
    """The asked tasks: built-in ones over held-out text, those of a user's file, or lighteval's own.

    Args:
        names: without the number of examples.
        custom_tasks: a Python file with a `TASKS_TABLE`; it is run.
        split: what the built-in tasks may take.
        store: where items of built-in tasks lie.

    Raises:
        UserError: for built-in tasks together with a file, a file that is not there, or a name with `|`.
    """
    for name in names:
        if "|" in name:
            raise UserError(f"task '{name}': give the number of examples with --num-fewshot")
    built_in = [name for name in names if name in BUILT_IN]
    if custom_tasks is not None and not custom_tasks.is_file():
        raise UserError(
            f"{custom_tasks}: no such file; --custom-tasks takes a Python file of lighteval tasks"
        )
    if custom_tasks is not None and built_in:
        raise UserError(
            f"{built_in[0]} is built in: lighteval takes one file of tasks, so leave --custom-tasks out"
        )
    if built_in:
        return _built_in(names, split, store)
    digest = sha256(custom_tasks.read_bytes() if custom_tasks else b"harness").hexdigest()[:16]
    file = str(custom_tasks.resolve()) if custom_tasks else None
    hashes = dict.fromkeys(names, digest)
    return TaskSet(tuple(names), (), hashes, local=False, include_defaults=False, custom_tasks=file)


def _built_in(names: Sequence[str], split: Split, store: Path) -> TaskSet:
    file = _harness_file("light_tasks.py")
    hashes: dict[str, str] = {}
    folder = store / f"light-{sha256(f'{split.seed} {split.fraction}'.encode()).hexdigest()[:8]}"
    for name in names:
        items = items_text(name, split) if name in BUILT_IN else ""
        hashes[name] = sha256(f"{file.read_text()}\0{items}".encode()).hexdigest()[:16]
        if name in BUILT_IN:
            (folder / name).mkdir(parents=True, exist_ok=True)
            keep(folder / name / "test.jsonl", items)
    return TaskSet(
        tuple(names),
        (),
        hashes,
        local=set(names) <= set(BUILT_IN),
        include_defaults=False,
        custom_tasks=str(file),
        data=str(folder.resolve()),
    )


def _harness_file(name: str) -> Path:
    """A file of ekd_nemo/harness, without importing the package."""
    with as_file(files("ekd_nemo").joinpath("harness", name)) as path:
        return path
