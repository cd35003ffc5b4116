"""`ekd eval ept`: what is refused before anything is started or made."""

from pathlib import Path

import pytest

from ekd_nemo.cli.evals import ept
from ekd_nemo.errors import CheckpointError, UserError
from tests.tiny_model import make_tiny

pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_sizes": "0"}, "--batch-sizes 0: accepted are whole numbers above 0"),
        ({"batch_sizes": ","}, "--batch-sizes ,: accepted are whole numbers above 0"),
        ({"new_tokens": "a"}, "--new-tokens a: accepted"),
        ({"prompts": "nowhere.txt"}, "no such file; accepted: built-in"),
        ({"engine": "magic"}, "--engine magic: accepted are transformers, vllm"),
        ({"meter": "magic"}, "--meter magic: accepted are auto"),
        ({"seconds": 0.0}, "--seconds 0.0: accepted"),
        ({"seconds": float("nan")}, "--seconds nan: accepted"),
        ({"warmup_s": -1.0}, "--warmup-s -1.0: accepted"),
    ],
)
def test_a_bad_option_is_one_line_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        ept(Path("model"), **options)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_tokenizer_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher_folder: Path
) -> None:
    folder = make_tiny(tmp_path / "m", teacher_folder)
    for path in folder.glob("*token*"):
        path.unlink()
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        ept(folder)
    assert list(cwd.iterdir()) == []
