import re
from pydoc_data.topics import topics

from ekd_nemo.sources import python_docs


def paragraphs(text: str) -> set[str]:
    found = {" ".join(part.split()) for part in re.split(r"\n\s*\n", text)}
    return {part for part in found if len(part) >= 200}


def test_every_long_paragraph_of_the_topics_is_in_one_document() -> None:
    documents = [paragraphs(doc.text) for doc in python_docs.documents()]
    expected = set().union(*(paragraphs(text) for text in topics.values()))
    assert set().union(*documents) == expected
    assert sum(map(len, documents)) == len(expected)


def test_the_topics_themselves_would_leak() -> None:
    shared = paragraphs(topics["specialnames"]) & paragraphs(topics["attribute-access"])
    assert shared  # what sections and deduplication are for


def test_held_out_is_a_part_that_shares_nothing_with_the_rest() -> None:
    held = python_docs.held_out(1234, 0.1)
    rest = [doc for doc in python_docs.documents() if doc not in held]
    assert 5 <= len(held) <= 40
    assert held == python_docs.held_out(1234, 0.1) != python_docs.held_out(1, 0.1)
    texts = set().union(*(paragraphs(doc.text) for doc in held))
    assert not texts & set().union(*(paragraphs(doc.text) for doc in rest))


def test_sections_have_their_headings() -> None:
    titles = {doc.title for doc in python_docs.documents() if doc.topic == "assert"}
    assert titles == {'The "assert" statement'}
    assert all(doc.text == doc.text.strip() != "" for doc in python_docs.documents())
