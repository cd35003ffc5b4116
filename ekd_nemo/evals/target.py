"""From what the user named to models, tasks and a split: a run directory, or a Hugging Face folder on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ekd_nemo.config.data import DataBuild
from ekd_nemo.config.recipe import EvalLm, Recipe
from ekd_nemo.config.resolve import read_resolved
from ekd_nemo.errors import CheckpointError, UserError
from ekd_nemo.evals.eval_dir import EvalDir
from ekd_nemo.evals.lm import STORE, Target
from ekd_nemo.evals.model_folder import CONFIG, open_model
from ekd_nemo.evals.taskset import BUILT_IN, Split
from ekd_nemo.records.rundir import RunDir
from ekd_nemo.sources.manifest import read_manifest


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    `run`: the run, if one was named; `recipe`: of that run, or of the run that a folder lies in.
    """

    path: Path
    run: RunDir | None
    recipe: Recipe | None

    @property
    def evaluation(self) -> EvalLm:
        """The recipe's settings; without any, the built-in tasks."""
        if (
            self.run is not None
            and self.recipe is not None
            and self.recipe.evaluation.lm is not None
        ):
            return self.recipe.evaluation.lm
        return EvalLm(tasks=BUILT_IN)

    def eval_dir(self, out: Path | None) -> EvalDir:
        """Where results go: `out`, else the run's `eval/`, else a folder named after the model."""
        if out is not None:
            return EvalDir(out)
        if self.run is not None:
            return EvalDir(self.run.eval)
        return EvalDir(STORE / open_model(self.path).label)

    def log(self, eval_dir: EvalDir) -> Path:
        """Where the harness's own output goes."""
        return (
            self.run.logs / "lm_eval.log" if self.run is not None else eval_dir.path / "lm_eval.log"
        )


def find_subject(path: Path) -> Subject:
    """A run directory or model folder.

    Raises:
        UserError: if the path is neither.
    """
    if (path / "run.json").is_file():
        run = RunDir(path)
        return Subject(path, run, read_resolved(run.recipe_yaml))
    if (path / CONFIG).is_file():
        parent = RunDir(path.resolve().parent)
        recipe = read_resolved(parent.recipe_yaml) if parent.recipe_yaml.is_file() else None
        return Subject(path, None, recipe)
    missing = "" if path.exists() else " (there is nothing there)"
    raise UserError(
        f"{path}: neither a run directory (run.json) nor a Hugging Face folder ({CONFIG}){missing}"
    )


def find_targets(
    subject: Subject, teacher: Path | None, *, student_only: bool, eval_dir: EvalDir
) -> tuple[Target, ...]:
    """The models of a run, student first, or the one model of a folder (and the teacher named beside it).

    Raises:
        CheckpointError: if a model is absent or incomplete.
    """
    if subject.run is None:
        targets = [Target("student" if teacher else "model", open_model(subject.path), eval_dir)]
    else:
        if not subject.run.hf.is_dir():
            raise CheckpointError(
                f"{subject.run.hf}: no exported student; make it with `ekd convert export`"
            )
        targets = [Target("student", open_model(subject.run.hf), eval_dir)]
        teacher = teacher or _teacher_of(subject.recipe)
    if teacher is not None and not student_only:
        model = open_model(teacher)
        targets.append(
            Target("teacher", model, EvalDir(STORE / model.label, eval_dir.harness), eval_dir)
        )
    return tuple(targets)


def _teacher_of(recipe: Recipe | None) -> Path | None:
    if recipe is None or recipe.teacher is None or not recipe.evaluation.teacher:
        return None
    return Path(recipe.teacher.path)


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
