"""The Python language reference as documents, from CPython's own `pydoc_data.topics`.

The topics repeat whole chapters of one another ("specialnames" holds "attribute-access"), so a
split by topic would train on what it holds out. One document is therefore one section, and a
section that several topics carry is one document. Patch releases of Python differ in this text: the
manifest of shards records its hash.
"""

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import import_module

from ekd_nemo.sources.split import content_key, in_validation

_HEADING = re.compile(
    r"^(?P<title>\S[^\n]*)\n(?P<rule>\*{3,}|={3,}|-{3,}|~{3,}|\^{3,})[ \t]*$", re.MULTILINE
)
_RULE_SLACK = 2  # characters by which an underline may differ from its title


@dataclass(frozen=True)
class PythonDoc:
    """One section of the language reference."""

    topic: str
    title: str
    text: str

    @property
    def key(self) -> bytes:
        """The content key by which shards and evaluation split the section."""
        return content_key(self.text)


@cache
def documents() -> tuple[PythonDoc, ...]:
    """Every section once, in the order of the sorted topics."""
    unique: dict[bytes, PythonDoc] = {}
    for topic, text in sorted(_topics().items()):
        for document in _sections(topic, text):
            unique.setdefault(_content_without_rule(document), document)
    return tuple(unique.values())


def held_out(seed: int, fraction: float) -> tuple[PythonDoc, ...]:
    """The validation side of the split that shards of the same seed and fraction have."""
    return tuple(doc for doc in documents() if in_validation(doc.key, seed, fraction))


@cache
def text_sha256() -> str:
    """The hash of all documents, which tells patch releases of Python apart."""
    digest = sha256()
    for doc in documents():
        digest.update(doc.key)
    return digest.hexdigest()


def _content_without_rule(document: PythonDoc) -> bytes:
    """A key that does not depend on the heading's level, which differs between topics."""
    return content_key(document.title, _HEADING.sub(r"\g<title>", document.text, count=1))


def _topics() -> dict[str, str]:
    return import_module("pydoc_data.topics").topics


def _sections(topic: str, text: str) -> list[PythonDoc]:
    heads = [
        m for m in _HEADING.finditer(text) if abs(len(m["title"]) - len(m["rule"])) <= _RULE_SLACK
    ]
    starts = [head.start() for head in heads]
    found = [PythonDoc(topic, topic, text[: starts[0] if starts else len(text)].strip())]
    for head, end in zip(heads, [*starts[1:], len(text)], strict=True):
        if text[
            head.end() : end
        ].strip():  # a heading whose body is only further sections is dropped
            found.append(PythonDoc(topic, head["title"], text[head.start() : end].strip()))
    return [doc for doc in found if doc.text]
