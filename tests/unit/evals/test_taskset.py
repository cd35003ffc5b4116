"""Built-in tasks are generated, a user's folder is read, and both are named by their content."""

import json
from pathlib import Path

import pytest
import yaml

from ekd_nemo.errors import ConfigError, RunError
from ekd_nemo.evals.light import gather_light_tasks
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


def test_included_templates_count_as_part_of_what_includes_them(tmp_path: Path, user: Path) -> None:
    # Named without a dot, as in lm-eval's own folders.
    (user / "_default_template_yaml").write_text("dataset_path: someone/some_set\nnum_fewshot: 1\n")
    (user / "sub.yaml").write_text("task: sub\ninclude: _default_template_yaml\n")
    first = gather_tasks(["sub"], user, SPLIT, tmp_path)
    assert not first.local
    (user / "_default_template_yaml").write_text("dataset_path: json\nnum_fewshot: 2\n")
    second = gather_tasks(["sub"], user, SPLIT, tmp_path)
    assert second.local
    assert second.sha256 != first.sha256


@pytest.mark.parametrize(
    ("template", "told"),
    [("include: sub.yaml\n", "it includes itself"), (None, "included by .*sub.yaml")],
)
def test_a_template_that_cannot_be_included_is_named(
    tmp_path: Path, user: Path, template: str | None, told: str
) -> None:
    (user / "sub.yaml").write_text("task: sub\ninclude: template\n")
    if template is not None:
        (user / "template").write_text(template)
    with pytest.raises(ConfigError, match=told):
        gather_tasks(["sub"], user, SPLIT, tmp_path)


def test_data_outside_the_folder_count_as_well(tmp_path: Path, user: Path) -> None:
    data = tmp_path / "elsewhere.jsonl"
    data.write_text("{}\n")
    (user / "mine.yaml").write_text(MINE.replace("mine.jsonl", str(data)))
    first = gather_tasks(["mine"], user, SPLIT, tmp_path)
    data.write_text('{"a": 1}\n')
    assert gather_tasks(["mine"], user, SPLIT, tmp_path).sha256 != first.sha256


def test_a_group_may_take_parts_from_the_harness(tmp_path: Path, user: Path) -> None:
    (user / "all.yaml").write_text("group: all\ntask: [mine, others]\n")
    assert gather_tasks(["all"], user, SPLIT, tmp_path).include_defaults
    (user / "others.yaml").write_text("group: others\ntask: [labelled]\n")
    (user / "mine.yaml").write_text(f"{MINE}tag: labelled\n")
    tasks = gather_tasks(["all"], user, SPLIT, tmp_path)
    assert (tasks.include_defaults, tasks.local) == (False, True)
    label = gather_tasks(["labelled"], user, SPLIT, tmp_path)
    assert (label.include_defaults, label.sha256["labelled"]) == (False, tasks.sha256["all"])


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


def test_a_store_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder would be")
    with pytest.raises(RunError, match="task files cannot be stored: .*store.*: Not a directory"):
        gather_tasks(BUILT_IN, None, SPLIT, tmp_path / "store")
    with pytest.raises(RunError, match="task files cannot be stored"):
        gather_light_tasks([BUILT_IN[1]], None, SPLIT, tmp_path / "store")
