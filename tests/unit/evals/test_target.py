"""What a path given to `ekd eval lm` means."""

import json
from pathlib import Path

import pytest

from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import recipe_text
from ekd_nemo.errors import CheckpointError, DataError, UserError
from ekd_nemo.evals.lm import STORE
from ekd_nemo.evals.target import Beside, find_split, find_subject, find_targets
from ekd_nemo.evals.taskset import BUILT_IN, DEFAULT


def model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(str(folder))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a student and a teacher folder."""
    teacher = model(tmp_path / "teacher")
    body = {
        "name": "r",
        "method": "response",
        "teacher": {"path": str(teacher)},
        "student": {"init": {"source": "teacher_layers", "keep_layers": [0]}},
        "data": {"path": str(tmp_path / "shards")},
        "objective": {"alpha": 0.5, "response": {}},
        "optimizer": {"lr": 1e-4},
        "train": {"steps": 1, "global_batch_size": 1},
        "evaluation": {"lm": {"tasks": ["python_docs_last_word"], "limit": 2}},
    }
    folder = tmp_path / "run"
    model(folder / "hf")
    (folder / "run.json").write_text("{}")
    (folder / "recipe.yaml").write_text(recipe_text(Recipe.model_validate(body)))
    return folder


def test_a_run_means_its_student_and_its_recipes_teacher(run: Path) -> None:
    subject = find_subject(run, print)
    assert (subject.evaluation.tasks, subject.evaluation.limit) == (("python_docs_last_word",), 2)
    home = subject.eval_dir(None)
    assert home.path == run / "eval"
    student, teacher = find_targets(subject, Beside(), tell=print, eval_dir=home)
    assert (student.role, student.final, student.home_role) == ("student", home, "student")
    assert (teacher.role, teacher.final, teacher.home_role) == ("teacher", home, "model")
    assert teacher.home.path == STORE / teacher.model.label
    assert [
        t.role for t in find_targets(subject, Beside(student_only=True), tell=print, eval_dir=home)
    ] == ["student"]


def test_a_folder_alone_has_no_role_and_a_place_of_its_own(tmp_path: Path) -> None:
    subject = find_subject(model(tmp_path / "m"), print)
    home = subject.eval_dir(None)
    (target,) = find_targets(subject, Beside(), tell=print, eval_dir=home)
    assert (target.role, home.path.parent) == ("model", STORE)
    assert subject.evaluation.tasks == DEFAULT
    assert subject.eval_dir(tmp_path / "out").path == tmp_path / "out"


def test_a_run_without_student_and_checkpoint_says_so(run: Path) -> None:
    (run / "hf").rename(run / "elsewhere")
    subject = find_subject(run, print)
    with pytest.raises(CheckpointError, match="no exported student, and no checkpoint"):
        find_targets(subject, Beside(), tell=print, eval_dir=subject.eval_dir(None))


def test_a_student_that_was_a_model_before_is_evaluated_beside(run: Path, tmp_path: Path) -> None:
    base = model(tmp_path / "base")
    recipe = Recipe.model_validate(
        find_subject(run, print).recipe.model_dump()
        | {"student": {"init": {"source": "checkpoint", "path": str(base)}}}
    )
    (run / "recipe.yaml").write_text(recipe_text(recipe))
    subject = find_subject(run, print)
    home = subject.eval_dir(None)
    targets = find_targets(subject, Beside(), tell=print, eval_dir=home)
    assert [target.role for target in targets] == ["student", "teacher", "base"]
    assert targets[2].model.path == base
    alone = find_targets(subject, Beside(student_only=True), tell=print, eval_dir=home)
    assert [target.role for target in alone] == ["student"]


def test_models_named_beside_a_folder_make_it_the_student(tmp_path: Path) -> None:
    subject = find_subject(model(tmp_path / "m"), print)
    beside = Beside(teacher=model(tmp_path / "t"), base=model(tmp_path / "b"))
    home = subject.eval_dir(tmp_path / "out")
    targets = find_targets(subject, beside, tell=print, eval_dir=home)
    assert [target.role for target in targets] == ["student", "teacher", "base"]


def test_anything_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"neither a run directory .* a Hugging Face folder .* nor a hub id"
    ):
        find_subject(tmp_path, print)
    with pytest.raises(UserError, match="there is nothing there"):
        find_subject(tmp_path / "gone", print)


def test_the_split_is_that_of_the_shards(run: Path, tmp_path: Path) -> None:
    subject = find_subject(run, print)
    with pytest.raises(DataError, match=r"manifest\.json"):
        find_split(subject, BUILT_IN, None)
    (tmp_path / "shards").mkdir()
    manifest = {"schema_version": 1, "settings": {"seed": 7, "validation_fraction": 0.2}}
    (tmp_path / "shards" / "manifest.json").write_text(json.dumps(manifest))
    split = find_split(subject, BUILT_IN, None)
    assert (split.seed, split.fraction) == (7, 0.2)
    # The exported folder on its own is held to the same split.
    assert find_split(find_subject(run / "hf", print), BUILT_IN, None) == split


def test_without_shards_the_default_split_is_taken(tmp_path: Path) -> None:
    split = find_split(find_subject(model(tmp_path / "m"), print), BUILT_IN, None)
    assert (split.seed, split.fraction, split.origin) == (1234, 0.1, "the default split")
