"""Built-in tasks are generated, a user's folder is read, and both are named by their content."""

import json
from pathlib import Path

import pytest
import yaml

from ekd_nemo.errors import ConfigError
from ekd_nemo.evals.taskset import BUILT_IN, Split, gather_tasks

SPLIT = Split(1234, 0.1, "test")
MINE = """\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: mine.jsonl}}
doc_to_text: !function code.text
"""


@pytest.fixture
def user(tmp_path: Path) -> Path:
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "mine.yaml").write_text(MINE)
    (folder / "mine.jsonl").write_text("{}\n")
    return folder


def test_built_in_tasks_need_no_hub_and_point_at_their_data(tmp_path: Path) -> None:
    tasks = gather_tasks(BUILT_IN, None, SPLIT, tmp_path)
    assert (tasks.local, tasks.include_defaults, tasks.names) == (True, False, BUILT_IN)
    for name, folder in zip(BUILT_IN, tasks.include_paths, strict=True):
        assert folder == tmp_path / tasks.sha256[name]
        config = yaml.safe_load((folder / f"{name}.yaml").read_text())
        data = Path(config["dataset_kwargs"]["data_files"]["test"])
        assert data.is_absolute()
        assert all(json.loads(line) for line in data.read_text().splitlines())


def test_another_split_is_another_task_and_the_same_split_the_same(tmp_path: Path) -> None:
    first = gather_tasks(BUILT_IN, None, SPLIT, tmp_path)
    assert gather_tasks(BUILT_IN, None, SPLIT, tmp_path / "elsewhere").sha256 == first.sha256
    other = gather_tasks(BUILT_IN, None, Split(7, 0.1, "test"), tmp_path)
    assert set(other.sha256.values()).isdisjoint(first.sha256.values())


def test_a_moved_or_damaged_store_is_put_right(tmp_path: Path) -> None:
    gather_tasks(BUILT_IN, None, SPLIT, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    tasks = gather_tasks(BUILT_IN, None, SPLIT, tmp_path / "b")
    data = tasks.include_paths[0] / f"{BUILT_IN[0]}.jsonl"
    whole = data.read_text()
    data.write_text(whole[:100])
    gather_tasks(BUILT_IN, None, SPLIT, tmp_path / "b")
    assert data.read_text() == whole
    config = yaml.safe_load(data.with_suffix(".yaml").read_text())
    assert config["dataset_kwargs"]["data_files"]["test"] == str(data.resolve())


def test_a_users_tasks_are_hashed_with_their_data_and_code(tmp_path: Path, user: Path) -> None:
    first = gather_tasks(["mine"], user, SPLIT, tmp_path)
    assert (first.local, first.include_defaults, first.include_paths) == (True, False, (user,))
    (user / "mine.jsonl").write_text('{"a": 1}\n')
    assert gather_tasks(["mine"], user, SPLIT, tmp_path).sha256 != first.sha256


def test_a_task_of_a_hub_data_set_is_not_local(tmp_path: Path, user: Path) -> None:
    (user / "hub.yaml").write_text("task: hub\ndataset_path: someone/some_set\n")
    assert not gather_tasks(["hub"], user, SPLIT, tmp_path).local


def test_a_name_that_no_folder_defines_is_the_harness_own(tmp_path: Path, user: Path) -> None:
    tasks = gather_tasks(["mine", "hellaswag"], user, SPLIT, tmp_path)
    assert (tasks.local, tasks.include_defaults) == (False, True)


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match="no task in it"):
        gather_tasks(["x"], tmp_path, SPLIT, tmp_path / "store")
    with pytest.raises(ConfigError, match="no such folder"):
        gather_tasks(["x"], tmp_path / "gone", SPLIT, tmp_path / "store")


def test_a_broken_task_file_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("task: [\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not a task file") as caught:
        gather_tasks(["x"], tmp_path, SPLIT, tmp_path / "store")
    assert "\n" not in str(caught.value)
