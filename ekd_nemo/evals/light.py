"""`ekd eval light`: lighteval as an engine of `evaluate`, and the tasks that it gets.

Of ekd's own tasks it gets the items and prompts of lm-eval, also under a limit, and answers every item as lm-eval does:
both encode question and answer together, sum the log-likelihood of the answer's tokens, and take the largest sum. In
fp32 their sums differ by the order of additions only, so that two options within about 1e-3 nats may change places.
Where both have the same name of their own tasks they ask differently (prompts, shots, normalisation): those scores are
not the same figure, which is why results keep their harness and OM_perf never mixes them.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

from ekd_nemo.errors import UserError
from ekd_nemo.evals.harnesses import LIGHT
from ekd_nemo.evals.heldout import WORD_CHOICE
from ekd_nemo.evals.light_env import LightEnv
from ekd_nemo.evals.lm import Engine
from ekd_nemo.evals.local_tasks import chosen
from ekd_nemo.evals.storing import storing
from ekd_nemo.evals.taskset import Split, TaskSet, as_lines, items_text, keep

# lighteval's rolling log-likelihood is not one, so bits per byte is lm-eval's alone.
BUILT_IN: Final = ("python_docs_last_word", WORD_CHOICE)
DEFAULT: Final = BUILT_IN[:1]


def lighteval(env: LightEnv) -> Engine:
    """Lighteval in its own environment."""
    return Engine(
        LIGHT, env.versions["lighteval"], (str(env.python), str(_harness_file("light_runner.py")))
    )


@storing("task files")
def gather_light_tasks(
    names: Sequence[str],
    custom_tasks: Path | None,
    split: Split,
    store: Path,
    task_data: Path | None = None,
    limit: int | None = None,
) -> TaskSet:
    """The asked tasks: ekd's own over held-out text or local data, those of a user's file, or lighteval's.

    Args:
        names: without the number of examples.
        custom_tasks: a Python file with a `TASKS_TABLE`; it is run.
        split: what the built-in tasks may take.
        store: where items of built-in tasks lie.
        task_data: a folder of data for the choice tasks of `local_tasks`; None: there is none.
        limit: items of ekd's own tasks, from the first, as lm-eval takes them: lighteval alone would draw others.

    Raises:
        UserError: for built-in tasks together with a file, a file that is not there, or a name with `|`.
        DataError: if the folder of data is not one.
        RunError: if the files cannot be written.
    """
    for name in names:
        if "|" in name:
            raise UserError(f"task '{name}': give the number of examples with --num-fewshot")
    built_in = {name: items_text(name, split) for name in names if name in BUILT_IN}
    built_in |= {} if custom_tasks else _local_items(names, task_data)
    if custom_tasks is not None and not custom_tasks.is_file():
        raise UserError(
            f"{custom_tasks}: no such file; --custom-tasks takes a Python file of lighteval tasks"
        )
    if custom_tasks is not None and built_in:
        raise UserError(
            f"{next(iter(built_in))} is ekd's own: lighteval takes one file of tasks, so leave --custom-tasks out"
        )
    if built_in:
        return _own(names, {name: _first(text, limit) for name, text in built_in.items()}, store)
    digest = sha256(custom_tasks.read_bytes() if custom_tasks else b"harness").hexdigest()[:16]
    file = str(custom_tasks.resolve()) if custom_tasks else None
    hashes = dict.fromkeys(names, digest)
    return TaskSet(tuple(names), (), hashes, local=False, include_defaults=False, custom_tasks=file)


def _local_items(names: Sequence[str], task_data: Path | None) -> dict[str, str]:
    """Items of the asked choice tasks over local data."""
    made = chosen(names, task_data)
    for task in made.values():
        if not task.is_choice:
            raise UserError(f"{task.name}: only `ekd eval lm` has it; lighteval gets choice tasks")
    return {name: as_lines(task.items["test"]) for name, task in made.items()}


def _first(lines: str, limit: int | None) -> str:
    """Of one JSON object a line; not by `splitlines`, for which a text's U+2028 ends a line as well."""
    return "\n".join([*lines.split("\n")[:-1][:limit], ""])


def _own(names: Sequence[str], items: Mapping[str, str], store: Path) -> TaskSet:
    """A folder with the items of ekd's own tasks, named by them."""
    file = _harness_file("light_tasks.py")
    content = "\0".join(text for pair in sorted(items.items()) for text in pair)
    folder = store / f"light-{sha256(content.encode()).hexdigest()[:8]}"
    for name, text in items.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        keep(folder / name / "test.jsonl", text)
    hashes = {
        name: sha256(f"{file.read_text()}\0{items.get(name, '')}".encode()).hexdigest()[:16]
        for name in names
    }
    return TaskSet(
        tuple(names),
        (),
        hashes,
        local=set(names) <= set(items),
        include_defaults=False,
        custom_tasks=str(file),
        data=str(folder.resolve()),
    )


def _harness_file(name: str) -> Path:
    """A file of ekd_nemo/harness, without importing the package."""
    with as_file(files("ekd_nemo").joinpath("harness", name)) as path:
        return path
