"""The facts of a launch for run.json: code, packages, Slurm, environment; no secrets."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

import ekd_nemo
from ekd_nemo.records.clock import boot_id, node_name, now
from ekd_nemo.records.identity import Attempt, CodeVersion, Slurm

# Of the environment only what changes numbers or speed is kept, never what may hold a credential.
_KEPT: Final = re.compile(
    r"(CUDA|NCCL|NVTE|NVIDIA_VISIBLE|OMP|MKL|GLOO|UCX|PYTORCH|TORCH_NCCL)_?[A-Z0-9_]*$|PYTHONHASHSEED$"
    r"|SLURM_(JOB_ID|NNODES|NTASKS|PROCID|LOCALID|STEP_ID|JOB_PARTITION|CPUS_PER_TASK|GPUS_ON_NODE|RESTART_COUNT)$"
)
_SECRET: Final = re.compile(r"(?i)(api_?key|token|secret|passw|credential|auth)")
_ASSIGNED_SECRET: Final = re.compile(
    r"(?i)((?:api_?key|token|secret|passw|credential)[\w.-]*[=:]).+"
)
_URL_USER: Final = re.compile(r"(://)[^/@\s]+@")

PACKAGES: Final = (
    "torch",
    "megatron-core",
    "nemo_toolkit",
    "transformer-engine",
    "nvidia-modelopt",
    "transformers",
    "datasets",
    "lm-eval",
    "lighteval",
    "nvidia-ml-py",
    "numpy",
    "pyarrow",
)


def package_versions() -> dict[str, str]:
    """Versions of the stack's packages that are installed, without importing any."""
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def safe_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that change what a run does, sorted; none whose name speaks of a secret."""
    return {
        name: _URL_USER.sub(r"\1***@", value)
        for name, value in sorted(environ.items())
        if _KEPT.match(name) and not _SECRET.search(name)
    }


def safe_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """The command line; values of secret-looking settings and users in URLs blotted out."""
    return tuple(_URL_USER.sub(r"\1***@", _ASSIGNED_SECRET.sub(r"\1***", word)) for word in argv)


def code_version() -> CodeVersion:
    """Version of the package; in a git checkout also its commit and whether files differ."""
    folder = Path(ekd_nemo.__file__).parent
    if shutil.which("git") is None or not (folder.parent / ".git").exists():
        return CodeVersion(version=ekd_nemo.__version__)
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return CodeVersion(
        version=ekd_nemo.__version__,
        commit=commit,
        dirty=None if changed is None else bool(changed),
    )


def _git(folder: Path, *args: str) -> str | None:
    """Output of a git command; None if git refuses (no commit yet, another user's checkout)."""
    done = subprocess.run(
        ["git", "-C", str(folder), *args], capture_output=True, text=True, check=False, timeout=30
    )
    return done.stdout.strip() if done.returncode == 0 else None


def slurm_facts(environ: Mapping[str, str]) -> Slurm | None:
    """The Slurm job around this process; None outside Slurm."""
    if "SLURM_JOB_ID" not in environ:
        return None
    return Slurm(
        job_id=environ["SLURM_JOB_ID"],
        array_job_id=environ.get("SLURM_ARRAY_JOB_ID"),
        array_task_id=environ.get("SLURM_ARRAY_TASK_ID"),
        cluster=environ.get("SLURM_CLUSTER_NAME"),
        partition=environ.get("SLURM_JOB_PARTITION"),
        nodes=environ.get("SLURM_JOB_NODELIST"),
    )


def capture_attempt(world_size: int | None = None) -> Attempt:
    """The facts of this launch, numbered 1 until `begin_attempt` numbers it."""
    return Attempt(
        attempt=1,
        t_wall_ns=now().wall_ns,
        node=node_name(),
        boot_id=boot_id(),
        argv=safe_argv(sys.argv),
        code=code_version(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages=package_versions(),
        environment=safe_environment(os.environ),
        slurm=slurm_facts(os.environ),
        world_size=world_size,
    )
