"""`ekd recipe list | show | launch --dry-run`."""

from pathlib import Path

import pytest

from ekd_nemo.cli.app import main
from ekd_nemo.config.loader import load_document
from ekd_nemo.config.recipe import Recipe
from ekd_nemo.config.resolve import list_recipes, resolve_recipe
from ekd_nemo.launch.plan import Plan

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EKD_DEBUG", "0")


def test_list_finds_the_packaged_recipes_from_any_folder(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipe", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == sorted(
        path.stem for path in (ROOT / "recipes").glob("[!_]*.yaml")
    )


def test_list_shows_a_broken_recipe_with_its_fault(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipes").mkdir()
    Path("recipes/smoke_sft.yaml").write_text("name: smoke_sft\nmethode: sft\n")
    assert main(["recipe", "list"]) == 0
    [line] = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("smoke_sft ")
    ]
    assert (
        "refused: recipes/smoke_sft.yaml:2: methode is not a key of the recipe; did you mean method?"
        in line
    )


def test_show_is_yaml_of_the_resolved_recipe_with_origins(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipe", "show", "smoke_response", "--set", "train.steps=3"]) == 0
    out = capsys.readouterr().out
    Path("shown.yaml").write_text(out)
    recipe = resolve_recipe("smoke_response", ["train.steps=3"]).recipe
    assert Recipe.model_validate(load_document(Path("shown.yaml")).data) == recipe
    lines = {line.split(":")[0].strip(): line for line in out.splitlines()}
    assert lines["steps"].endswith("# --set train.steps=3")
    assert lines["seed"].endswith("# default")
    assert "smoke_response.yaml:" in lines["alpha"]
    assert "smoke_sft.yaml:" in lines["lr"]


@pytest.mark.parametrize("name", sorted(list_recipes([ROOT / "recipes"])))
def test_every_recipe_resolves_and_names_its_command(name: str) -> None:
    path = ROOT / "recipes" / f"{name}.yaml"
    recipe = resolve_recipe(name, folders=[ROOT / "recipes"]).recipe
    assert recipe.description
    assert path.read_text().startswith(f"# ekd recipe launch {name}")
    assert recipe.baseline is None or recipe.baseline in list_recipes([ROOT / "recipes"])


def test_smoke_recipes_differ_in_the_objective_alone() -> None:
    folders = [ROOT / "recipes"]
    first, second = (
        resolve_recipe(name, folders=folders).recipe for name in ("smoke_sft", "smoke_response")
    )
    own = {"name", "description", "method", "objective", "baseline"}
    assert first.model_dump(exclude=own) == second.model_dump(exclude=own)
    assert first.student.init.keep_layers is not None
    assert len(first.student.init.keep_layers) <= 10


def test_adapters_are_launched_as_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe", "launch", "response_70b_to_8b+lora", "--cluster", "h100", "--dry-run"]
    main(words)
    out, err = capsys.readouterr()
    assert "response_70b_to_8b-lora" in out
    assert "lora" not in err  # what this machine lacks is said, and nothing of adapters


def test_dry_run_prints_the_plan_and_what_is_wrong_and_does_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipe", "launch", "smoke_sft", "--local", "--dry-run", "--run-id", "x"]) == 2
    out, err = capsys.readouterr()
    assert "-m ekd_nemo.worker train --run runs/x\n" in out
    assert "teacher.path: assets/teacher/smollm2-135m-instruct-q4: no such folder" in err
    assert "python tools/make_teacher.py" in err
    assert list(Path().iterdir()) == []


def test_a_dry_run_needs_no_place_to_run_in(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["recipe", "launch", "response_70b_to_8b", "--dry-run"]
    assert main([*argv, "--set", "teacher.parallel=null"]) == 0
    assert "ekd_nemo.worker train --run " in capsys.readouterr().out
    assert list(Path().iterdir()) == []


def test_launch_passes_on_the_exit_code_and_the_way_to_resume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []

    def stopped(plan: Plan, say: object, resume: str) -> int:
        told.append(resume)
        return 75

    monkeypatch.setattr("ekd_nemo.launch.local.launch_local", stopped)
    Path("runs dir").mkdir()
    argv = ["recipe", "launch", "smoke_sft", "--local", "--runs", "runs dir", "--run-id", "mine"]
    assert main([*argv, "--set", "train.steps=3", "--nproc", "2"]) == 75
    expected = "--set=train.steps=3 --local --nproc 2 --runs 'runs dir' --run-id mine"
    assert told == [f"ekd recipe launch smoke_sft {expected}"]
