"""The environment of lighteval: its packages come first, what it lacks (torch, transformers) comes from ekd's own.

Its numpy does not fit Megatron's, hence an environment of its own; torch is not installed twice.
"""

import json
import shutil
import site
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from ekd_nemo.config.base import Strict
from ekd_nemo.errors import MissingExtraError, RunError, UserError
from ekd_nemo.evals.storing import storing
from ekd_nemo.records.atomic import write_text

DEFAULT: Final = Path("assets/env/lighteval")
_OURS: Final = "made-by-ekd"  # written first: only such a folder is ever replaced
_MARKER: Final = "ready.json"  # written last
_CHECK: Final = """
import json, numpy, pandas, pyarrow, torch, transformers
from importlib.metadata import version
assert int(numpy.__version__.split(".")[0]) >= 2, numpy.__version__
assert torch.from_numpy(numpy.ones(3)).sum() == 3
names = ("lighteval", "numpy", "torch", "transformers", "datasets", "huggingface_hub", "xxhash")
print(json.dumps({name: version(name) for name in names}))
"""


class _Marker(Strict):
    """What the environment was made from, and what is in it."""

    key: str
    versions: dict[str, str]


@dataclass(frozen=True)
class LightEnv:
    """An environment that has been checked."""

    path: Path
    versions: dict[str, str]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / "bin" / "python"


@storing("the environment of lighteval")
def open_env(path: Path, tell: Callable[[str], None]) -> LightEnv:
    """The environment, made and checked if it is not there yet, or if its requirements have changed.

    Raises:
        UserError: if the folder holds something else.
        RunError: if it cannot be made, or does not pass its check.
    """
    if find_spec("torch") is None:
        raise MissingExtraError("ekd eval light", "train")
    requirements = files("ekd_nemo.evals").joinpath("light", "requirements.txt").read_text()
    wanted = sha256(
        "\0".join([requirements, sys.version, *package_folders()]).encode()
    ).hexdigest()[:16]
    found = _read_marker(path)
    if found is not None and found.key == wanted:
        return LightEnv(path, found.versions)
    if (
        path.exists()
        and not (path / _OURS).is_file()
        and (not path.is_dir() or any(path.iterdir()))
    ):
        raise UserError(f"{path}: not an environment made by ekd; give another folder with --env")
    tell(f"making the environment of lighteval in {path}: a few minutes, once")
    shutil.rmtree(path, ignore_errors=True)
    versions = _make(path, requirements)
    marker = _Marker(key=wanted, versions=versions)
    write_text(path / _MARKER, marker.model_dump_json(indent=2) + "\n")
    return LightEnv(path, versions)


def package_folders() -> list[str]:
    """Where this Python finds packages: its own, and the system's where its virtual environment sees them.

    The latter is so in NVIDIA's NeMo container: ekd is in a virtual environment there, torch and pip are outside of it.
    """
    return [folder for folder in site.getsitepackages() if Path(folder).is_dir()]


def _read_marker(path: Path) -> _Marker | None:
    try:
        return _Marker.model_validate_json((path / _MARKER).read_bytes())
    except (OSError, ValidationError):
        return None  # never finished: made anew


def _make(path: Path, requirements: str) -> dict[str, str]:
    path.mkdir(parents=True)
    (path / _OURS).touch()
    _run([sys.executable, "-m", "venv", "--without-pip", str(path)], "cannot be made")
    python = str(path / "bin" / "python")
    own = Path(
        _run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            "has no Python",
        ).strip()
    )
    # Last in the search path: the environment's own packages hide those of ekd.
    (own / "zz_ekd.pth").write_text("".join(f"{folder}\n" for folder in package_folders()))
    listed = path / "requirements.txt"
    listed.write_text(requirements)
    # pip leaves alone what lies outside the prefix of the Python that runs it.
    pip = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--prefix",
        str(path),
        "--requirement",
        str(listed),
    ]
    _run(pip, "cannot be filled")
    return json.loads(
        _run([python, "-c", _CHECK], "does not pass its check").strip().splitlines()[-1]
    )


def _run(argv: list[str], what: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        told = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no word"]
        raise RunError(f"the environment of lighteval {what}: {told[-1][-300:]}")
    return done.stdout
