"""Items come from the held-out side alone, are chosen the same each time, and ask what they seem to."""

import pytest

from ekd_nemo.errors import DataError
from ekd_nemo.evals.heldout import (
    CONTEXT_CHARS,
    NUM_WORDS,
    PASSAGE_CHARS,
    items_of,
    last_words,
    passages,
)
from ekd_nemo.sources.python_docs import PythonDoc, documents, held_out

TASKS = ("python_docs_bits_per_byte", "python_docs_last_word")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", [1234, 7])
def test_no_item_is_in_the_text_that_is_trained_on(task: str, seed: int) -> None:
    kept = {doc.key for doc in held_out(seed, 0.1)}
    trained = [doc.text for doc in documents() if doc.key not in kept]
    for item in items_of(task, seed, 0.1):
        text = item["text"] if "text" in item else f"{item['context']} {item['word']}."
        assert not any(text in document for document in trained)


@pytest.mark.parametrize("task", TASKS)
def test_the_choice_is_the_splits_alone(task: str) -> None:
    assert items_of(task, 1234, 0.1) == items_of(task, 1234, 0.1)
    assert items_of(task, 1234, 0.1) != items_of(task, 7, 0.1)


def test_a_last_word_is_what_the_text_goes_on_with() -> None:
    texts = [doc.text for doc in held_out(1234, 0.1)]
    items = items_of("python_docs_last_word", 1234, 0.1)
    assert len(items) == NUM_WORDS
    assert all(any(f"{i['context']} {i['word']}." in text for text in texts) for i in items)
    assert all(len(i["context"]) <= CONTEXT_CHARS and not i["context"].endswith(" ") for i in items)


def test_passages_are_disjoint_pieces_of_the_text() -> None:
    items = passages(held_out(1234, 0.1), limit=10**6)
    texts = {doc.title: doc.text for doc in held_out(1234, 0.1)}
    assert all(item["text"] in texts[item["section"]] for item in items)
    assert all(len(item["text"]) <= PASSAGE_CHARS for item in items)
    assert sum(len(item["text"]) for item in items) <= sum(map(len, texts.values()))


def test_every_section_comes_before_the_second_item_of_any() -> None:
    sentence = "The quick brown fox jumps over the lazy dog and the dog does not mind it at all"
    docs = [
        PythonDoc(
            "t", f"s{n}", "\n".join(f"Line {k}. {sentence} for the last time." for k in range(40))
        )
        for n in range(3)
    ]
    assert {item["section"] for item in last_words(docs, limit=3)} == {"s0", "s1", "s2"}


def test_a_split_that_holds_out_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="validation_fraction"):
        items_of("python_docs_last_word", 1234, 0.0)
