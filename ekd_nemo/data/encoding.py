"""From documents to token ids, with the tokens that are learned."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ekd_nemo.data.rendering import Rendered, conversed, joined
from ekd_nemo.errors import DataError
from ekd_nemo.sources.document import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BATCH = 256  # documents tokenised at once


@dataclass(frozen=True)
class Encoded:
    """A tokenised document.

    Attributes:
        tokens: [n] int64.
        learned: [n] bool; True where the token is a target of the loss.
        num_boundary: tokens that hold characters of both a prompt and an answer; they are not
            learned.
    """

    document: Document
    tokens: NDArray[np.int64]
    learned: NDArray[np.bool_]
    num_boundary: int = 0


class Encoder:
    """Turns documents into token ids; a plain text is learned whole, with an end of sequence."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", *, chat: bool, answers_only: bool
    ) -> None:
        """Check that the tokenizer can do what is asked.

        Raises:
            DataError: if it has no end-of-sequence token, or no chat template where `chat` asks for
                one.
        """
        if not tokenizer.is_fast:
            raise DataError(
                f"{tokenizer.name_or_path}: a slow tokenizer; accepted: one with a tokenizer.json"
            )
        if tokenizer.eos_token_id is None:
            raise DataError(f"{tokenizer.name_or_path}: the tokenizer has no end-of-sequence token")
        if chat and tokenizer.chat_template is None:
            raise DataError(
                f"{tokenizer.name_or_path}: no chat template; accepted with it: template none"
            )
        self._tokenizer = tokenizer
        self._eos = cast("int", tokenizer.eos_token_id)
        self._chat = chat
        self._answers_only = answers_only

    def encode(self, documents: Iterable[Document]) -> Iterator[Encoded]:
        """Every document, in order; a blank one comes out with no tokens."""
        pending = iter(documents)
        while batch := list(islice(pending, _BATCH)):
            yield from self._encode_batch(batch)

    def _encode_batch(self, batch: Sequence[Document]) -> Iterator[Encoded]:
        rendered = [None if _is_blank(document) else self._rendered(document) for document in batch]
        written = [text for text in rendered if text is not None]
        plain = iter(self._tokenise([t for t in written if not t.templated], specials=True))
        templated = iter(self._tokenise([t for t in written if t.templated], specials=False))
        for document, text in zip(batch, rendered, strict=True):
            if text is None:
                yield Encoded(document, np.empty(0, np.int64), np.empty(0, np.bool_))
            else:
                yield self._encoded(document, text, *next(templated if text.templated else plain))

    def _rendered(self, document: Document) -> Rendered:
        if self._chat and document.text is None:
            return conversed(document, self._tokenizer)
        return joined(document)

    def _tokenise(
        self, texts: list[Rendered], *, specials: bool
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids and character spans; no spans where no text of the batch needs them."""
        if not texts:
            return []
        spans_needed = self._answers_only and any(text.answers is not None for text in texts)
        out = self._tokenizer(
            [text.text for text in texts],
            add_special_tokens=specials,
            # What is spelled like a special token in a plain text is text: it ends or begins nothing.
            split_special_tokens=specials,
            return_attention_mask=False,
            return_offsets_mapping=spans_needed,
            verbose=False,
        )
        ids = cast("list[list[int]]", out["input_ids"])
        if not spans_needed:
            return [(each, []) for each in ids]
        offsets = cast("list[list[tuple[int, int]]]", out["offset_mapping"])
        return list(zip(ids, offsets, strict=True))

    def _encoded(
        self, document: Document, text: Rendered, ids: list[int], offsets: list[tuple[int, int]]
    ) -> Encoded:
        eos = self._eos
        if not text.templated and (not ids or ids[-1] != eos):
            ids, offsets = [*ids, eos], [*offsets, (len(text.text), len(text.text))]
        tokens = np.asarray(ids, np.int64)
        if text.answers is None or not self._answers_only:
            return Encoded(document, tokens, np.ones(len(tokens), np.bool_))
        learned, num_boundary = _inside(np.asarray(offsets, np.int64).reshape(-1, 2), text.answers)
        if not text.templated and text.answers and text.answers[-1][1] == len(text.text):
            learned[-1] = True  # the end of the last answer is learned as well
        return Encoded(document, tokens, learned, num_boundary)


def _is_blank(document: Document) -> bool:
    return document.text is not None and not document.text.strip()


def _inside(
    offsets: NDArray[np.int64], spans: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.bool_], int]:
    """Tokens whose characters all lie in a span, and the number of those that only touch one.

    Args:
        offsets: [n, 2] character spans of the tokens; empty for tokens that the tokenizer added.
        spans: disjoint, ascending.
    """
    learned = np.zeros(len(offsets), np.bool_)
    touching = np.zeros(len(offsets), np.bool_)
    start, end = offsets[:, 0], offsets[:, 1]
    for first, last in spans:
        learned |= (start >= first) & (end <= last) & (end > start)
        touching |= (start < last) & (end > first) & (end > start)
    return learned, int((touching & ~learned).sum())
