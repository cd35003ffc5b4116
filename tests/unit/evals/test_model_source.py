"""Models by hub id, from the hub's own cache on disk, and by checkpoint."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ekd_nemo.errors import CheckpointError
from ekd_nemo.evals.model_source import find_model, is_checkpoint, is_hub_id
from tests.tiny_model import make_tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_id_is_two_names_where_no_such_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(Path("owner/name"))
    assert not is_hub_id(Path("name"))
    assert not is_hub_id(Path("a/b/c"))
    (tmp_path / "owner").mkdir()
    assert not is_hub_id(Path("owner/name"))


def test_a_hub_id_is_read_from_the_hubs_cache(tmp_path: Path, teacher_folder: Path) -> None:
    pytest.importorskip("huggingface_hub")
    home = tmp_path / "hub"
    repo = home / "models--owner--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    folder = make_tiny(repo / "snapshots" / COMMIT, teacher_folder)
    code = (
        "from pathlib import Path; from ekd_nemo.evals.model_source import find_model; "
        "m = find_model(Path('owner/tiny'), print); print(m.path, m.shown, m.label)"
    )
    env = {**os.environ, "HF_HUB_CACHE": str(home), "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path, shown, label = done.stdout.split()
    assert Path(path) == folder
    assert shown == "owner/tiny"
    assert label.startswith("tiny-")
    shutil.rmtree(repo)
    gone = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "not to be had from the hub" in gone.stderr.splitlines()[-1]


def test_a_checkpoint_that_cannot_be_exported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "step_1" / "weights"
    folder.mkdir(parents=True)
    (folder / ".metadata").write_bytes(b"not a table of contents")
    assert is_checkpoint(folder.parent) and is_checkpoint(folder)
    told: list[str] = []
    with pytest.raises(CheckpointError, match="cannot be exported") as caught:
        find_model(folder.parent, told.append)
    assert "\n" not in str(caught.value)
    assert told[0].startswith("exporting ")
    assert [p for p in (tmp_path / "assets").rglob("*") if p.is_file()] == []
