"""`ekd convert` in processes of its own: SmolLM2 to a NeMo checkpoint and back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def ekd(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ekd_nemo", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def checkpoint(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 imported, alone in its folder."""
    out = tmp_path_factory.mktemp("imported") / "checkpoint"
    done = ekd("convert", "import", teacher_folder, out)
    assert done.returncode == 0, done.stderr
    assert list(out.parent.iterdir()) == [out]
    return out


def test_smollm2_there_and_back_is_bit_for_bit(
    teacher_folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    back = tmp_path / "back"
    done = ekd("convert", "export", checkpoint, back)
    assert done.returncode == 0, done.stderr
    expected = load_file(teacher_folder / "model.safetensors")
    found = load_file(back / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert list(tmp_path.iterdir()) == [back]
    tokenizer = "tokenizer_config.json"
    assert (back / tokenizer).read_text() == (teacher_folder / tokenizer).read_text()
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (back, teacher_folder))
    assert {key: theirs[key] for key in ours} == ours


@pytest.mark.slow
def test_nemo_builds_and_loads_what_was_imported(checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.nemo_reads", str(checkpoint)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "{tmp}/nowhere", "{tmp}/out"), "nowhere: no such folder"),
        (("export", "{teacher}", "{tmp}/out"), "not a Megatron distributed checkpoint"),
        (("import", "{teacher}", "{tmp}"), "exists, nothing is overwritten"),
        (("import", "{tmp}/nowhere", "{tmp}/out"), "nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    teacher_folder: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = ekd("convert", *(w.format(tmp=tmp_path, teacher=teacher_folder) for w in words))
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()
