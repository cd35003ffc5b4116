"""Documents and how records become them: the field heuristics of the shard builder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from ekd_nemo.errors import DataError
from ekd_nemo.sources.split import content_key

# (prompt, answer, further context of the prompt that may be there)
_PAIRS = (
    ("instruction", "output", "input"),
    ("instruction", "response", "context"),
    ("prompt", "response", None),
    ("input", "output", None),
    ("question", "answer", None),
)
ACCEPTED = "text; messages [{role, content}]; or a pair " + ", ".join(
    f"{p}/{a}" for p, a, _ in _PAIRS
)


_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    @property
    def is_answer(self) -> bool:
        """Whether the turn is the model's, and thus learned."""
        return self.role == "assistant"


@dataclass(frozen=True)
class Document:
    """A plain text (one message without a role) or a conversation.

    `where` names the record in messages: file and line, or data set and row. `source` is the
    position of its source in the build.
    """

    where: str
    text: str | None = None
    messages: tuple[Message, ...] = ()
    source: int = 0

    @property
    def key(self) -> bytes:
        """The content key by which the document is split."""
        if self.text is not None:
            return content_key(self.text)
        return content_key(*(part for m in self.messages for part in (m.role, m.content)))


def document_of(
    record: Mapping[str, Any], where: str, prefer: Literal["text", "conversation"]
) -> Document:
    """The document that a record holds.

    Args:
        record: a row of a data set; its field names decide.
        where: names the record in messages.
        prefer: which of a plain text and a conversation is taken from a record that has both.

    Raises:
        DataError: if no accepted field is there, or one holds something else than text.
    """
    readers = [_text, _messages, _pair] if prefer == "text" else [_messages, _pair, _text]
    for read in readers:
        document = read(record, where)
        if document is not None:
            return document
    fields = ", ".join(sorted(map(str, record))) or "(none)"
    raise DataError(f"{where}: no text in fields {fields}; accepted: {ACCEPTED}")


def _text(record: Mapping[str, Any], where: str) -> Document | None:
    if record.get("text") is None:
        return None
    return Document(where, text=_string(record, "text", where))


def _pair(record: Mapping[str, Any], where: str) -> Document | None:
    for prompt, answer, context in _PAIRS:
        if record.get(prompt) is None or record.get(answer) is None:
            continue
        asked = _string(record, prompt, where)
        if context and record.get(context):
            asked += "\n\n" + _string(record, context, where)
        return Document(
            where,
            messages=(Message("user", asked), Message("assistant", _string(record, answer, where))),
        )
    return None


def _messages(record: Mapping[str, Any], where: str) -> Document | None:
    turns = record.get("messages")
    if turns is None:
        return None
    if not isinstance(turns, list) or not turns:
        raise DataError(
            f"{where}: messages must be a list of {{role, content}} with at least one entry"
        )
    listed = enumerate(cast("list[object]", turns))
    messages = tuple(_message(turn, f"{where}: messages[{n}]") for n, turn in listed)
    return Document(where, messages=messages)


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} must be an object with role and content")
    fields = cast("Mapping[str, Any]", turn)
    return Message(_string(fields, "role", where), _string(fields, "content", where))


def _string(record: Mapping[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise DataError(f"{where}: {field} must be text, not {type(value).__name__}")
    if _SURROGATE.search(value):
        raise DataError(f"{where}: {field} holds half of a surrogate pair, which is not text")
    return value
