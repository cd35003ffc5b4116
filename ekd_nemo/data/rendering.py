"""From a document to the text that is tokenised, with the spans that are answers.

Not covered: templates that render a turn differently once later turns follow (they are refused
unless they mark their answers with generation blocks), tool calls, content that is not text.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from ekd_nemo.errors import DataError
from ekd_nemo.sources.document import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TURN_SEPARATOR = "\n\n"
Span = tuple[int, int]


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


def marks_answers(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template says itself which parts are answers (generation blocks)."""
    template = tokenizer.get_chat_template()
    return _GENERATION_BLOCK.search(template) is not None


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
    """A conversation in the chat template, its answers found by the difference of prefixes.

    An answer begins where the template would have let the model begin (its generation prompt) and
    ends with the end-of-turn token; white space after that token belongs to the next turn.

    Raises:
        DataError: if the template refuses the conversation, or does not render prefixes as
            prefixes.
    """
    turns = [{"role": m.role, "content": m.content} for m in document.messages]
    whole = _render(turns, tokenizer, document.where, prompt=False)
    answers: list[Span] = []
    for position, message in enumerate(document.messages):
        if not message.is_answer:
            continue
        before = (
            _render(turns[:position], tokenizer, document.where, prompt=True) if position else ""
        )
        through = _render(turns[: position + 1], tokenizer, document.where, prompt=False)
        if not (whole.startswith(through) and through.startswith(before)):
            raise DataError(
                f"{document.where}: the chat template does not render the turns up to an answer "
                "as a prefix of the whole; accepted: templates that do, or that mark answers with "
                "generation blocks"
            )
        answers.append((len(before), len(through.rstrip())))
    return Rendered(whole, tuple(answers), templated=True)


def _render(
    turns: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", where: str, *, prompt: bool
) -> str:
    return str(
        apply_template(tokenizer, turns, where, tokenize=False, add_generation_prompt=prompt)
    )


def apply_template(
    tokenizer: "PreTrainedTokenizerBase", turns: list[dict[str, str]], where: str, **options: Any
) -> Any:
    """The tokenizer's chat template, its refusals as a `DataError` that names the record."""
    try:
        return tokenizer.apply_chat_template(turns, **options)
    except TemplateError as error:
        raise DataError(f"{where}: the chat template refuses the conversation ({error})") from error
