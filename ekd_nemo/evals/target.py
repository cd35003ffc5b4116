"""From what the user named to models, tasks and a split: a run directory, or a Hugging Face folder on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ekd_nemo.config.data import DataBuild
from ekd_nemo.config.recipe import EvalLm, Recipe
from ekd_nemo.config.resolve import read_resolved
from ekd_nemo.errors import CheckpointError, UserError
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.lm import STORE, Target, Tell
from ekd_nemo.evals.model_folder import CONFIG, ModelFolder, open_model
from ekd_nemo.evals.model_source import find_model, is_checkpoint, is_hub_id
from ekd_nemo.evals.taskset import BUILT_IN, DEFAULT, Split
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.manifest import read_manifest


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    `model`: of a folder, hub id or checkpoint; None for a run, whose student is looked up. `run`: the run, if one was
    named; `recipe`: of that run, or of the run that a folder or checkpoint lies in.
    """

    path: Path
    run: RunDir | None
    recipe: Recipe | None
    model: ModelFolder | None = None

    @property
    def evaluation(self) -> EvalLm:
        """The recipe's settings; without any, the built-in tasks."""
        if (
            self.run is not None
            and self.recipe is not None
            and self.recipe.evaluation.lm is not None
        ):
            return self.recipe.evaluation.lm
        return EvalLm(tasks=DEFAULT)

    def eval_dir(self, out: Path | None) -> EvalDir:
        """Where results go: `out`, else the run's `eval/`, else a folder named after the model."""
        if out is not None:
            return EvalDir(out)
        if self.run is not None:
            return EvalDir(self.run.eval)
        return EvalDir(STORE / self._model.label)

    @property
    def _model(self) -> ModelFolder:
        assert self.model is not None, "what is no run is a model"
        return self.model

    def log(self, eval_dir: EvalDir) -> Path:
        """Where the harness's own output goes."""
        return (
            self.run.logs / "lm_eval.log" if self.run is not None else eval_dir.path / "lm_eval.log"
        )


def find_subject(path: Path, tell: Tell) -> Subject:
    """A run directory, or a model by its folder, hub id or Megatron checkpoint.

    Raises:
        UserError: if the path is none of them.
        CheckpointError: if the model is incomplete.
    """
    if (path / "run.json").is_file():
        run = RunDir(path)
        return Subject(path, run, read_resolved(run.recipe_yaml))
    folder = path.resolve()
    if (path / CONFIG).is_file():
        return Subject(path, None, _recipe_in(folder.parent), open_model(path))
    if is_checkpoint(path):
        recipe = _recipe_in(folder.parent.parent)
        return Subject(path, None, recipe, find_model(path, tell, _like(recipe)))
    if is_hub_id(path):
        return Subject(path, None, None, find_model(path, tell))
    missing = "" if path.exists() else " (there is nothing there)"
    raise UserError(
        f"{path}: neither a run directory (run.json), a Hugging Face folder ({CONFIG}), a Megatron checkpoint nor a "
        f"hub id{missing}"
    )


def _recipe_in(folder: Path) -> Recipe | None:
    """The recipe of the run that a folder is."""
    path = RunDir(folder).recipe_yaml
    return read_resolved(path) if path.is_file() else None


def _like(recipe: Recipe | None) -> str | None:
    """The model whose configuration and tokenizer the student has."""
    if recipe is None:
        return None
    return recipe.student.init.path or (recipe.teacher.path if recipe.teacher else None)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Models to evaluate beside the subject; None leaves the choice to the recipe, `student_only` leaves all out."""

    teacher: Path | None = None
    base: Path | None = None
    student_only: bool = False


def find_targets(
    subject: Subject, beside: Beside, *, eval_dir: EvalDir, tell: Tell
) -> tuple[Target, ...]:
    """The models of a run, student first, or the one model that was named (and those named beside it).

    Raises:
        CheckpointError: if a model is absent or incomplete.
    """
    teacher, base = beside.teacher, beside.base
    if subject.run is None:
        role = "student" if teacher or base else "model"
        targets = [Target(role, subject._model, eval_dir)]
    else:
        targets = [Target("student", _student(subject.run, subject.recipe, tell), eval_dir)]
        teacher = teacher or _teacher_of(subject.recipe)
        base = base or _base_of(subject.recipe)
    others = {} if beside.student_only else {"teacher": teacher, "base": base}
    for role, path in others.items():
        if path is not None:
            model = find_model(path, tell)
            home = EvalDir(STORE / model.label, eval_dir.harness)
            targets.append(Target(role, model, home, eval_dir))
    return tuple(targets)


def _student(run: RunDir, recipe: Recipe | None, tell: Tell) -> ModelFolder:
    """The exported student, or the last checkpoint, exported on the way."""
    if run.hf.is_dir():
        return open_model(run.hf)
    checkpoints = [path for path in sorted(run.checkpoints.glob("step_*")) if is_checkpoint(path)]
    if not checkpoints:
        raise CheckpointError(
            f"{run.hf}: no exported student, and no checkpoint in {run.checkpoints}; launch the run first"
        )
    return find_model(checkpoints[-1], tell, _like(recipe))


def _teacher_of(recipe: Recipe | None) -> Path | None:
    if recipe is None or recipe.teacher is None or not recipe.evaluation.teacher:
        return None
    return Path(recipe.teacher.path)


def _base_of(recipe: Recipe | None) -> Path | None:
    """The student as it was before training, where that is a model of its own."""
    if recipe is None or recipe.student.init.source != "checkpoint":
        return None
    return Path(recipe.student.init.path) if recipe.student.init.path else None


def find_split(subject: Subject, tasks: Sequence[str], data: Path | None) -> Split:
    """Which python-docs text was not trained on: from the shards' manifest, else the split that shards have by default.

    Raises:
        DataError: if the shards named by the user or the recipe are not there.
    """
    if data is None and subject.recipe is not None:
        data = Path(subject.recipe.data.path)
    if data is None or not set(tasks) & set(BUILT_IN):
        fields = DataBuild.model_fields
        return Split(
            fields["seed"].default,
            fields["validation_fraction"].default,
            "the default split",
        )
    settings = read_manifest(data)["settings"]
    return Split(int(settings["seed"]), float(settings["validation_fraction"]), str(data))
