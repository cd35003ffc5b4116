"""What holds between the pieces: import directions, a light side that needs no torch, and help that is fast."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "nemo",
    "megatron",
    "lightning",
    "transformers",
    "datasets",
    "lm_eval",
    "safetensors",
    "triton",
)
LIGHT = (
    "cli",
    "config",
    "evals",
    "launch",
    "meter",
    "metrics",
    "planner",
    "records",
    "sources",
    "telemetry",
)
HELP_RATIO = 10  # of the design


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which every heavy module raises as soon as it is imported."""
    folder = tmp_path_factory.mktemp("poison")
    for name in HEAVY:
        (folder / f"{name}.py").write_text(
            f"raise ImportError('{name} was imported on the light side')\n"
        )
    return {**os.environ, "PYTHONPATH": str(folder)}


def ekd(environment: dict[str, str], *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ekd_nemo", *argv]
    return subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_poison_works(without_torch: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import torch"], env=without_torch, cwd=tmp_path, check=False
    )
    assert done.returncode == 1


def test_import_directions_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_light_module_imports_without_torch(
    without_torch: dict[str, str], tmp_path: Path
) -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in LIGHT
        for path in (ROOT / "ekd_nemo" / room).rglob("*.py")
        if "tasks" not in path.parts
    )
    assert len(modules) > 40
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=without_torch,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_teachers_side_of_a_split_run_loads_neither_nemo_nor_lightning() -> None:
    code = (
        "import sys, ekd_nemo.models.teaching\n"
        "print(*sorted({'nemo', 'lightning', 'pytorch_lightning'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--help"], 0, "recipe "),
        (["recipe", "list"], 0, "smoke_response"),
        (["recipe", "show", "response_70b_to_8b"], 0, "meta-llama/Llama-3.1-70B-Instruct"),
        (["metrics", "summarise", "runs"], 2, "error: runs"),
        (["metrics", "--help"], 0, "summarise"),
        (["data", "build", "--help"], 0, "--tokenizer"),
        (["eval", "lm", "--help"], 0, "--tasks"),
        (["telemetry", "--help"], 0, "record"),
        (["convert", "export", "--help"], 0, "--like"),
        (["doctor", "--help"], 0, "--help"),
    ],
)
def test_the_command_line_works_without_torch(
    without_torch: dict[str, str], tmp_path: Path, argv: list[str], code: int, said: str
) -> None:
    done = ekd(without_torch, *argv, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["recipe"],
        ["recipe", "launch"],
        ["data", "build"],
        ["convert", "export"],
        ["eval", "lm"],
        ["telemetry"],
        ["metrics", "summarise"],
        ["doctor"],
    ],
)
def test_help_is_fast(argv: list[str]) -> None:
    """The least of several runs, in processor time: what else the machine does only adds."""
    bare = min(processor_s("-c", "pass") for _ in range(5))
    helped = min(processor_s("-m", "ekd_nemo", *argv, "--help") for _ in range(3))
    assert helped < HELP_RATIO * bare


def processor_s(*argv: str) -> float:
    """User and system time of one Python process."""
    process = subprocess.Popen([sys.executable, *argv], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_recipes_are_linked_into_the_package() -> None:
    """The wheel is built from the package's folder: what it links to is what it carries."""
    link = ROOT / "ekd_nemo" / "recipes"
    assert link.resolve() == ROOT / "recipes"


@pytest.mark.slow
def test_the_wheel_carries_recipes_and_tasks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"ekd_nemo/recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")} <= names
    tasks = [
        path
        for path in (ROOT / "ekd_nemo" / "evals" / "tasks").rglob("*")
        if path.suffix == ".yaml"
    ]
    assert {str(path.relative_to(ROOT)) for path in tasks} <= names
