import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ekd_nemo.data.encoding import Encoded, Encoder
from ekd_nemo.errors import DataError
from ekd_nemo.sources.document import Document, Message
from tests.unit.data.tokenizers import CHATML, MARKED, UNSTEADY, small_tokenizer

TURNS = (
    Message("system", "Be brief."),
    Message("user", "What is the capital of France?"),
    Message("assistant", "The capital of France is Paris."),
    Message("user", "And of Spain? Say <|im_end|> twice."),
    Message("assistant", "Madrid — naïve: 東京, 🙂"),
)
CHAT = Document("f, line 1", messages=TURNS)


@pytest.fixture(scope="module", params=[CHATML, MARKED], ids=["prefixes", "generation blocks"])
def chat(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return small_tokenizer(request.param)


def encode(
    tokenizer: PreTrainedTokenizerFast, *documents: Document, **options: bool
) -> list[Encoded]:
    encoder = Encoder(tokenizer, **{"chat": True, "answers_only": True, **options})
    return list(encoder.encode(documents))


def learned_runs(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The text of every unbroken run of learned tokens."""
    edges = np.flatnonzero(np.diff([0, *encoded.learned.astype(int), 0]))
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [tokenizer.decode(encoded.tokens[first:last]) for first, last in runs]


def test_exactly_the_answers_and_their_end_tokens_are_learned(
    chat: PreTrainedTokenizerFast,
) -> None:
    (encoded,) = encode(chat, CHAT)
    assert learned_runs(encoded, chat) == [
        "The capital of France is Paris.<|im_end|>",
        "Madrid — naïve: 東京, 🙂<|im_end|>",
    ]
    assert chat.decode(encoded.tokens) == chat.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in TURNS], tokenize=False
    )
    assert encoded.num_boundary == 0


def test_both_ways_of_finding_answers_agree() -> None:
    by_prefix, by_block = (
        encode(small_tokenizer(template), CHAT)[0] for template in (CHATML, MARKED)
    )
    assert (by_prefix.tokens == by_block.tokens).all()
    assert (by_prefix.learned == by_block.learned).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=3))
def test_no_prompt_character_is_ever_learned(
    tokenizer: PreTrainedTokenizerFast, exchanges: list[tuple[str, str]]
) -> None:
    turns = [
        message
        for prompt, answer in exchanges
        for message in (Message("user", prompt), Message("assistant", answer))
    ]
    (encoded,) = encode(tokenizer, Document("f", messages=tuple(turns)))
    answers = [answer + "<|im_end|>" for _, answer in exchanges]
    runs = learned_runs(encoded, tokenizer)
    if encoded.num_boundary == 0:
        assert runs == answers
    else:  # an answer that begins with white space shares a token with the prompt's line break
        assert all(answer.endswith(run) for run, answer in zip(runs, answers, strict=True))


def test_a_token_across_the_boundary_is_not_learned_but_counted(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    turns = (Message("user", "q"), Message("assistant", "\n   indented"))
    (encoded,) = encode(tokenizer, Document("f", messages=turns))
    assert encoded.num_boundary > 0
    assert learned_runs(encoded, tokenizer)[0].endswith("indented<|im_end|>")


def test_a_plain_text_is_learned_whole_and_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    (encoded,) = encode(tokenizer, Document("f", text="def f(): pass"), chat=False)
    assert tokenizer.decode(encoded.tokens) == "def f(): pass<|im_end|>"
    assert encoded.learned.all()


@pytest.mark.parametrize("text", ["one <|im_end|> two", "<|im_start|>", "ends with <|im_end|>"])
def test_what_a_plain_text_spells_is_no_special_token(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    """A page about chat templates does not end in its middle."""
    encoder = Encoder(tokenizer, chat=True, answers_only=True)
    (found,) = encoder.encode([Document("x", text=text)])
    special = set(tokenizer.all_special_ids)
    assert [token in special for token in found.tokens.tolist()].count(True) == 1
    assert found.tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(found.tokens[:-1]) == text


def test_a_pair_without_a_template_learns_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = Document(
        "f", messages=(Message("user", "Add 1 and 1."), Message("assistant", "2 is it."))
    )
    (answers,) = encode(tokenizer, pair, chat=False)
    (whole,) = encode(tokenizer, pair, chat=False, answers_only=False)
    assert tokenizer.decode(answers.tokens) == "Add 1 and 1.\n\n2 is it.<|im_end|>"
    assert learned_runs(answers, tokenizer) == ["2 is it.<|im_end|>"]
    assert whole.learned.all()
    assert (whole.tokens == answers.tokens).all()


def test_a_conversation_that_ends_with_the_user_teaches_no_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    (encoded,) = encode(tokenizer, Document("f", messages=turns), chat=False)
    assert learned_runs(encoded, tokenizer) == ["b"]


def test_documents_keep_their_order_over_batches(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = (Message("user", "q"), Message("assistant", "a"))
    mixed = [
        Document(str(n), text=f"text {n}") if n % 3 == 0 else Document(str(n), messages=pair)
        for n in range(600)
    ]
    mixed[7] = Document("7", text=" \n")
    out = encode(tokenizer, *mixed)
    assert [encoded.document.where for encoded in out] == [str(n) for n in range(600)]
    assert len(out[7].tokens) == 0
    assert tokenizer.decode(out[300].tokens) == "text 300<|im_end|>"


def test_an_unsteady_template_is_refused_with_the_record() -> None:
    with pytest.raises(
        DataError, match=r"f, line 1: the chat template does not render .* generation"
    ):
        encode(small_tokenizer(UNSTEADY), CHAT)


def test_what_the_template_refuses_names_the_record() -> None:
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}"
    with pytest.raises(DataError, match=r"f, line 1: the chat template refuses .*user first"):
        encode(small_tokenizer(template), CHAT)


def test_a_template_that_writes_the_date_gives_the_same_text_every_day() -> None:
    template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    tokenizer = small_tokenizer(template)
    (encoded,) = encode(tokenizer, CHAT)
    assert tokenizer.decode(encoded.tokens).startswith("26 Jul 2024<|im_start|>")


def test_a_tokenizer_without_template_or_end_is_refused() -> None:
    with pytest.raises(DataError, match="no chat template"):
        Encoder(small_tokenizer(None), chat=True, answers_only=True)
    endless = small_tokenizer()
    endless.eos_token = None
    with pytest.raises(DataError, match="no end-of-sequence token"):
        Encoder(endless, chat=False, answers_only=False)
