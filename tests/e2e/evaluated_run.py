"""A finished run that evaluations can be asked of."""

import json
import shutil
from pathlib import Path

from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import recipe_text
from ekd_nemo.records.capture import capture_attempt
from ekd_nemo.records.identity import RunIdentity, begin_attempt
from ekd_nemo.records.rundir import RunDir


def make_run(cwd: Path, student: Path, teacher: Path, name: str = "r1") -> Path:
    """A finished run in `cwd` with an exported student, and the manifest of its shards."""
    run = RunDir(cwd / "runs" / name)
    body = {
        "name": name,
        "method": "response",
        "teacher": {"path": str(teacher)},
        "student": {"init": {"source": "teacher_layers", "keep_layers": [0]}},
        "data": {"path": "shards"},
        "objective": {"alpha": 0.5, "response": {}},
        "optimizer": {"lr": 1e-4},
        "train": {"steps": 1, "global_batch_size": 1},
        "evaluation": {
            "lm": {"tasks": ["python_docs_last_word", "python_docs_bits_per_byte"], "limit": 2}
        },
    }
    (cwd / "shards").mkdir(exist_ok=True)
    manifest = {"schema_version": 1, "settings": {"seed": 7, "validation_fraction": 0.2}}
    (cwd / "shards" / "manifest.json").write_text(json.dumps(manifest))
    identity = RunIdentity(
        run_id=name, recipe=name, recipe_hash="0" * 12, method="response", seed=1
    )
    begin_attempt(run, identity, capture_attempt())
    run.recipe_yaml.write_text(recipe_text(Recipe.model_validate(body)))
    shutil.copytree(student, run.hf)
    return run.path
