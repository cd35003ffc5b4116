"""Evaluation items from held-out text of the Python language reference: passages to compress, last words to guess.

The choice is a function of the split alone: the first item of every section comes before the second of any, and
sections are taken in the order of a hash. So a long section does not crowd out the others.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from ekd_nemo.errors import DataError
from ekd_nemo.sources.python_docs import PythonDoc, held_out

PASSAGE_CHARS = 1500  # about 380 tokens of SmolLM2
PASSAGE_MIN_CHARS = 200
NUM_PASSAGES = 20
CONTEXT_CHARS = 360
CONTEXT_MIN_CHARS = 120
NUM_WORDS = 64
WORD_CHOICE = "python_docs_word_choice"
NUM_CHOICE_ITEMS = 128
NUM_CHOICES = 4

# A lower-case word that ends a sentence and is not the first word of its line.
_LAST_WORD = re.compile(r"(?<=[a-z,”\"]) (?P<word>[a-z]{3,})\.(?=\s|$)")

Item = dict[str, str]
ChoiceItem = dict[str, str | list[str] | int]


def items_of(task: str, seed: int, fraction: float) -> list[dict[str, Any]]:
    """The items of a built-in task for one split.

    Args:
        task: `python_docs_bits_per_byte`, `python_docs_last_word` or `python_docs_word_choice`.
        seed: of the split, from the manifest of the shards.
        fraction: held out, from the manifest of the shards.

    Raises:
        DataError: if the split holds out no text that is long enough.
    """
    docs = held_out(seed, fraction)
    makers: dict[str, Callable[[Sequence[PythonDoc]], Sequence[Mapping[str, Any]]]] = {
        "python_docs_bits_per_byte": passages,
        "python_docs_last_word": last_words,
        WORD_CHOICE: word_choices,
    }
    items = [dict(item) for item in makers[task](docs)]
    if not items:
        raise DataError(
            f"{task}: the split with seed {seed} and validation_fraction {fraction} holds out no usable text of "
            "python-docs; build the shards with a validation_fraction of at least 0.05"
        )
    return items


def passages(docs: Iterable[PythonDoc], limit: int = NUM_PASSAGES) -> list[Item]:
    """Whole lines joined to at most PASSAGE_CHARS characters: {section, text}."""
    found = [[{"section": doc.title, "text": text} for text in _cut(doc.text)] for doc in docs]
    return _round_robin(found, limit)


def last_words(docs: Iterable[PythonDoc], limit: int = NUM_WORDS) -> list[Item]:
    """Sentences up to their last word: {section, context, word}."""
    return _round_robin([_words_of(doc) for doc in docs], limit)


def word_choices(docs: Iterable[PythonDoc], limit: int = NUM_CHOICE_ITEMS) -> list[ChoiceItem]:
    """Sentences with their last word among three of other sentences, in the order of a hash: {query, choices, gold}."""
    items = last_words(docs, limit)
    words = sorted({item["word"] for item in items}, key=lambda word: _digest({"word": word}))
    return [_choices(item, words) for item in items if len(words) >= NUM_CHOICES]


def _choices(item: Item, words: Sequence[str]) -> ChoiceItem:
    start = words.index(item["word"])
    offered = [words[(start + step) % len(words)] for step in range(NUM_CHOICES)]
    offered.sort(key=lambda word: _digest({"context": item["context"], "word": word}))
    return {
        "query": item["context"],
        "choices": [f" {word}" for word in offered],
        "gold": offered.index(item["word"]),
    }


def _cut(text: str) -> list[str]:
    pieces: list[str] = []
    lines: list[str] = []
    for line in text.splitlines():
        if lines and sum(map(len, lines)) + len(lines) + len(line) > PASSAGE_CHARS:
            pieces.append("\n".join(lines))
            lines = []
        lines.append(line)
    pieces.append("\n".join(lines))
    return [piece.strip("\n") for piece in pieces if len(piece.strip()) >= PASSAGE_MIN_CHARS]


def _words_of(doc: PythonDoc) -> list[Item]:
    found = [
        (_context(doc.text, match.start()), match["word"])
        for match in _LAST_WORD.finditer(doc.text)
    ]
    return [
        {"section": doc.title, "context": context, "word": word}
        for context, word in found
        if len(context) >= CONTEXT_MIN_CHARS
    ]


def _context(text: str, end: int) -> str:
    """At most CONTEXT_CHARS characters before `end`, from the start of a line."""
    start = max(0, end - CONTEXT_CHARS)
    if start > 0:
        newline = text.find("\n", start, end)
        start = end if newline < 0 else newline + 1
    return text[start:end].lstrip("\n")


def _round_robin(groups: Iterable[Sequence[Item]], limit: int) -> list[Item]:
    """The first of each group, then the second of each, ...: at most `limit`; within a group by hash."""
    ranked = [
        (rank, _digest(item), item)
        for group in groups
        for rank, item in enumerate(sorted(group, key=_digest))
    ]
    return [item for _, _, item in sorted(ranked, key=lambda entry: entry[:2])[:limit]]


def _digest(item: Item) -> str:
    return sha256("\0".join(item.values()).encode("utf-8", "surrogatepass")).hexdigest()
