import pytest

from ekd_nemo.errors import DataError
from ekd_nemo.sources.document import Document, Message, document_of

PAIRS = [
    ({"instruction": "add", "output": "2"}, "add", "2"),
    ({"instruction": "add", "input": "1 and 1", "output": "2"}, "add\n\n1 and 1", "2"),
    ({"instruction": "add", "input": "", "output": "2"}, "add", "2"),
    ({"instruction": "q", "context": "c", "response": "r"}, "q\n\nc", "r"),
    ({"prompt": "q", "response": "r"}, "q", "r"),
    ({"input": "q", "output": "r"}, "q", "r"),
    ({"question": "q", "answer": "r"}, "q", "r"),
]


@pytest.mark.parametrize(("record", "prompt", "answer"), PAIRS)
def test_pairs_become_two_turns(record: dict[str, str], prompt: str, answer: str) -> None:
    document = document_of(record, "f, line 1", "text")
    assert document.text is None
    assert document.messages == (Message("user", prompt), Message("assistant", answer))


def test_text_is_taken_as_it_is() -> None:
    assert document_of({"text": " a ", "id": 1}, "f", "conversation").text == " a "


def test_messages_keep_roles_and_order() -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert [m.role for m in document_of({"messages": turns}, "f", "text").messages] == [
        "system",
        "user",
    ]


def test_a_record_with_both_follows_the_preference() -> None:
    record = {"text": "rendered", "instruction": "i", "output": "o"}
    assert document_of(record, "f", "text").text == "rendered"
    assert document_of(record, "f", "conversation").messages[1].content == "o"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"title": "x", "body": "y"},
            r"f, line 3: no text in fields body, title; accepted: text; .*prompt/response",
        ),
        ({}, r"no text in fields \(none\)"),
        ({"text": 3}, "f, line 3: text must be text, not int"),
        ({"prompt": "q", "response": ["r"]}, "response must be text, not list"),
        ({"text": "a\ud800b"}, "text holds half of a surrogate pair"),
        ({"messages": []}, "at least one entry"),
        ({"messages": ["hello"]}, r"messages\[0\] must be an object"),
        (
            {"messages": [{"role": "user", "content": None}]},
            r"messages\[0\]: content must be text, not NoneType",
        ),
    ],
)
def test_other_shapes_are_refused_with_the_place(record: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        document_of(record, "f, line 3", "text")


def test_the_key_is_the_content_not_the_place() -> None:
    assert Document("a", text="x y").key == Document("b", text="x  y\n").key
    assert Document("a", text="x").key != Document("a", text="y").key
    one, two = (
        (Message("user", "ab"), Message("assistant", "c")),
        (Message("user", "a"), Message("assistant", "bc")),
    )
    assert Document("a", messages=one).key != Document("a", messages=two).key
