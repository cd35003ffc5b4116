"""Prompts of the energy-per-token benchmark: from a text or JSONL file, a data set, or the built-in set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Final

from ekd_nemo.errors import DataError, UserError
from ekd_nemo.evals.heldout import last_words
from ekd_nemo.sources.document import document_of
from ekd_nemo.sources.jsonl import records
from ekd_nemo.sources.python_docs import documents

BUILT_IN: Final = "built-in"
ACCEPTED: Final = "built-in, a file (*.jsonl, or text with one prompt a line), or hub:NAME[:SPLIT]"
_FIELDS: Final = (("prompt", None), ("instruction", "context"), ("instruction", "input"))
_FIELDS_ALONE: Final = ("question", "input")


@dataclass(frozen=True)
class PromptSource:
    """Where prompts come from.

    Attributes:
        label: in words, for the record.
        texts: all of them, in the order of the source; None: a data set that the worker reads.
        hub: name and split of that data set.
    """

    label: str
    texts: tuple[str, ...] | None
    hub: tuple[str, str] | None = None

    @property
    def sha256(self) -> str:
        """Sixteen hex digits of the texts, or of the data set's name."""
        content = [*(self.hub or ())] if self.texts is None else self.texts
        return prompts_sha256(content)


def open_prompts(text: str) -> PromptSource:
    """The source that the user named.

    Raises:
        UserError: if there is no such file, or it holds no prompt.
        DataError: for a line that is not a prompt, with file and line.
    """
    if text == BUILT_IN:
        return PromptSource(BUILT_IN, tuple(built_in()))
    if text.startswith("hub:"):
        name, _, split = text.removeprefix("hub:").partition(":")
        if not name:
            raise UserError(f"--prompts {text}: no name; accepted: {ACCEPTED}")
        return PromptSource(f"{name} ({split or 'train'})", None, (name, split or "train"))
    path = Path(text)
    if not path.is_file():
        raise UserError(f"--prompts {text}: no such file; accepted: {ACCEPTED}")
    texts = _jsonl(path) if path.suffix == ".jsonl" else _lines(path)
    if not any(texts):
        raise UserError(f"{path}: holds no prompt")
    return PromptSource(path.name, tuple(texts))


def built_in() -> list[str]:
    """Sentences of the Python language reference, to be gone on with: the same on every machine."""
    return [item["context"] for item in last_words(documents())]


def drawn(texts: Sequence[str], count: int, seed: int) -> tuple[str, ...]:
    """A seeded sample of `count` prompts, without replacement while there are enough; then over again."""
    random = Random(f"{seed}:ept-prompts")
    found: list[str] = []
    while len(found) < count:
        found.extend(random.sample(texts, min(len(texts), count - len(found))))
    return tuple(found)


def prompts_sha256(texts: Sequence[str]) -> str:
    """Sixteen hex digits that name the prompts and their order."""
    return sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def prompt_of(record: Mapping[str, Any], where: str) -> str:
    """What a record asks, without any answer that it holds; may be empty.

    Raises:
        DataError: if no accepted field is there, or one holds something else than text.
    """
    for field, context in _FIELDS:
        asked, further = record.get(field), record.get(context) if context else None
        if isinstance(asked, str) and (context is None or isinstance(further, str)):
            return f"{asked}\n\n{further}" if further else asked
    for field in ("instruction", *_FIELDS_ALONE):
        if isinstance(asked := record.get(field), str):
            return asked
    document = document_of(record, where, "conversation")
    if document.text is not None:
        return document.text
    asked = next((message.content for message in document.messages if not message.is_answer), None)
    if asked is None:
        raise DataError(f"{where}: messages hold no question, only answers")
    return asked


def _jsonl(path: Path) -> list[str]:
    return [prompt_of(record, f"{path}:{number}") for number, record in records(path)]


def _lines(path: Path) -> list[str]:
    """One prompt a line; an empty line is an empty prompt, a final newline none."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
