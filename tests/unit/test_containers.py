"""The image's files agree with the package's pins, and its check says what is wrong; no image is built."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
RECIPE = CONTAINERS / "Dockerfile"


def test_the_pins_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    train = " ".join(project["optional-dependencies"]["train"])
    pins = dict(line.split("==") for line in (CONTAINERS / "pins.txt").read_text().split())
    assert f"megatron-core=={pins['megatron-core']}" in train
    assert re.search(rf"nemo_toolkit\[[^]]*\]=={re.escape(pins['nemo-toolkit'])}", train)
    lm_eval = project["optional-dependencies"]["eval"][0].replace("[hf]", "")
    assert f"'{lm_eval}'" in (CONTAINERS / "Dockerfile").read_text()


def test_the_light_dependencies_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    recipe = (CONTAINERS / "Dockerfile").read_text()
    for wanted in project["dependencies"]:
        name = re.split(r"[<>=\[ ]", wanted)[0]
        assert name == "numpy" or f"{name}" in recipe, name  # numpy is the base's


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, comments gone and continued lines joined."""
    lines = [line for line in RECIPE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name, rest) for name, rest in found]


def copied() -> list[str]:
    """What the build takes from the checkout."""
    sources = [rest.split()[:-1] for name, rest in instructions() if name == "COPY"]
    return [each for group in sources for each in group]


def test_all_that_is_copied_is_there_and_let_through() -> None:
    listed = ["git", "ls-files", "-z", "--", *copied()]
    tracked = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    files = tracked.stdout.split("\0")
    first, *others = (ROOT / ".dockerignore").read_text().splitlines()[1:]
    assert first == "*"
    allowed = {line.removeprefix("!") for line in others if line.startswith("!")}
    for each in copied():
        assert any(file == each or file.startswith(f"{each}/") for file in files), each
        assert each.split("/")[0] in allowed, each
    # What the package links to is copied beside it.
    for link in (path for path in (ROOT / "ekd_nemo").iterdir() if path.is_symlink()):
        assert link.resolve().relative_to(ROOT).parts[0] in copied(), link


def test_all_that_is_run_is_copied() -> None:
    commands = " ".join(rest for name, rest in instructions() if name == "RUN")
    used = set(re.findall(r"(?<![/\w.])containers/[\w./-]+", commands))
    assert used == {"containers/pins.txt", "containers/check.sh"}
    assert used <= set(copied())
    assert os.access(CONTAINERS / "check.sh", os.X_OK)
    (folder,) = re.findall(r'open_env\(Path\("([^"]+)"\)', commands)
    assert ("ENV", f"EKD_LIGHTEVAL_ENV={folder}") in instructions()
    assert folder in (CONTAINERS / "check.sh").read_text()
    for module, name in re.findall(r"from (ekd_nemo[\w.]+) import (\w+)", commands):
        assert hasattr(import_module(module), name), f"{module}.{name}"


def test_what_is_installed_fits_the_constraints() -> None:
    """The versions that the tests run with are among those that the image may get."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and line[0] != "#")
    pinned = {canonicalize_name(name): version.split()[0] for name, version in pinned.items()}
    commands = " ".join(rest for name, rest in instructions() if name == "RUN")
    wanted = [Requirement(each) for each in re.findall(r"'([A-Za-z][\w.-]*[<>=][^']*)'", commands)]
    wanted += [Requirement(line) for line in (CONTAINERS / "pins.txt").read_text().splitlines()]
    assert len(wanted) == 11
    for each in wanted:
        assert each.specifier.contains(pinned[canonicalize_name(each.name)]), str(each)


def test_the_recipe_is_built_from_one_named_tag_and_stops_at_a_failure() -> None:
    """A few of hadolint's rules: DL3006, DL3007, DL3013, DL3020, DL4006."""
    names = [name for name, _ in instructions()]
    assert names[:3] == ["ARG", "FROM", "SHELL"]
    (base,) = re.findall(r"^BASE=(\S+)$", instructions()[0][1])
    assert re.fullmatch(r"nvcr\.io/nvidia/nemo:\d\d\.\d\d", base)
    assert base.rpartition(":")[2] in (CONTAINERS / "README.md").read_text()
    assert instructions()[2][1] == '["/bin/bash", "-o", "pipefail", "-c"]'
    assert "ADD" not in names
    for name, rest in instructions():
        if name == "RUN":
            # A bare pip is not that of the base's virtual environment.
            assert not re.search(r"(?<!-m )\bpip3? install", rest), rest
            done = subprocess.run(["bash", "-n", "-c", rest], capture_output=True, check=False)
            assert done.returncode == 0, rest


def test_the_check_names_what_is_missing() -> None:
    if find_spec("transformer_engine") is not None:
        pytest.skip("Transformer Engine is installed: this test is about a machine without it")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [CONTAINERS / "check.sh", "--without-gpu"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = {line[6:26].strip(): line for line in done.stdout.splitlines()}
    assert done.returncode == 1
    assert lines["megatron-core"].startswith("ok")
    assert lines["nemo-toolkit"].startswith("ok")
    assert lines["transformer engine"].startswith("FAIL")
    assert lines["GPU, NVML, FP8"].startswith("skip")
    assert done.stderr == ""
