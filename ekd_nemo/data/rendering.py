"""From a document to the text that is tokenised, with the spans that are answers.

Not covered: templates that render a turn differently once later turns follow (they are refused
unless they mark their answers with generation blocks), tool calls, content that is not text.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from ekd_nemo.errors import DataError
from ekd_nemo.sources.document import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TURN_SEPARATOR = "\n\n"
_TODAY = date(2024, 7, 26)  # the day that Llama 3.1's template writes by itself
_render_jinja = cast("Callable[..., tuple[list[str], list[list[Span]]]]", render_jinja_template)


@dataclass(frozen=True)
class Rendered:
    """A text to tokenise.

    Attributes:
        text: all of it; special tokens spelled out where a template wrote them.
        answers: character spans [start, end) that are answers; None where the whole text is
            learned.
        templated: whether the template has written the special tokens itself.
    """

    text: str
    answers: tuple[Span, ...] | None
    templated: bool


def joined(document: Document) -> Rendered:
    """A plain text as it is; the turns of a conversation joined by a blank line."""
    if document.text is not None:
        return Rendered(document.text, None, templated=False)
    text, answers = "", []
    for message in document.messages:
        text += _TURN_SEPARATOR if text else ""
        if message.is_answer:
            answers.append((len(text), len(text) + len(message.content)))
        text += message.content
    return Rendered(text, tuple(answers), templated=False)


def conversed(document: Document, tokenizer: "PreTrainedTokenizerBase") -> Rendered:
    """A conversation in the tokenizer's chat template.

    An answer is what the template's generation blocks hold. In a template without them it begins
    where the model would have been let to begin (after the generation prompt) and ends where the
    turn ends. Either way the end-of-turn token is part of the answer, white space after it is not.

    Raises:
        DataError: if the template refuses the conversation, or has no generation blocks and does
            not render the turns up to an answer as a prefix of the whole.
    """
    whole, blocks = _render(document, len(document.messages), tokenizer)
    marked = _GENERATION_BLOCK.search(tokenizer.get_chat_template()) is not None
    spans = blocks if marked else _spans_by_prefix(document, tokenizer, whole)
    specials = tuple(tokenizer.all_special_tokens)
    answers = tuple((start, _end_of_turn(whole, start, end, specials)) for start, end in spans)
    return Rendered(whole, answers, templated=True)


def _spans_by_prefix(
    document: Document, tokenizer: "PreTrainedTokenizerBase", whole: str
) -> list[Span]:
    spans: list[Span] = []
    for position, message in enumerate(document.messages):
        if not message.is_answer:
            continue
        before = _render(document, position, tokenizer, prompt=True)[0] if position else ""
        through, _ = _render(document, position + 1, tokenizer)
        if not (whole.startswith(through) and through.startswith(before)):
            raise DataError(
                f"{document.where}: the chat template does not render the turns up to an answer "
                "as a prefix of the whole; accepted: templates that do, or that mark answers with "
                "generation blocks"
            )
        spans.append((len(before), len(through)))
    return spans


def _end_of_turn(text: str, start: int, end: int, specials: tuple[str, ...]) -> int:
    """The end of an answer: behind its end-of-turn token, inside the span or right after it."""
    trimmed = start + len(text[start:end].rstrip())
    if text.endswith(specials, start, trimmed):
        return trimmed
    following = [token for token in specials if text.startswith(token, end)]
    return end + max(map(len, following), default=0)


def _render(
    document: Document,
    num_messages: int,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    prompt: bool = False,
) -> tuple[str, list[Span]]:
    """The text of the first messages, and the spans of the template's generation blocks.

    A template that writes today's date is given the same day always, for the same bytes.
    Not through `apply_chat_template`: its mask of answers loses the last bytes of an answer that
    ends with a character of several tokens.
    """
    turns = [{"role": m.role, "content": m.content} for m in document.messages[:num_messages]]
    options: dict[str, Any] = {
        **tokenizer.special_tokens_map,
        "add_generation_prompt": prompt,
        "strftime_now": _TODAY.strftime,
    }
    template = tokenizer.get_chat_template()
    marked = _GENERATION_BLOCK.search(template) is not None
    try:
        rendered, spans = _render_jinja(
            [turns], chat_template=template, return_assistant_tokens_mask=marked, **options
        )
    except TemplateError as error:
        raise DataError(
            f"{document.where}: the chat template refuses the conversation ({error})"
        ) from error
    return rendered[0], list(spans[0]) if marked else []
