"""The image's files agree with the package's pins, and its check says what is wrong; no image is built."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"


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
