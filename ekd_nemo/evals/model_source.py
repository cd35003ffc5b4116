"""Models that do not lie in a Hugging Face folder yet: hub ids, and Megatron checkpoints, exported on the way."""

import importlib
import logging
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from ekd_nemo.config.architecture import CHECKPOINT_ASSETS, HUB_ID
from ekd_nemo.errors import EXIT_USER, CheckpointError, RunError
from ekd_nemo.evals.model_folder import CONFIG, ModelFolder, open_model

EXPORTED: Final = Path("assets/eval/exported")
_METADATA: Final = ".metadata"
_FILES: Final = (
    "*.json",
    "*.safetensors",
    "tokenizer.model",
    "merges.txt",
    "chat_template.jinja",
)
Tell = Callable[[str], None]


def is_hub_id(path: Path) -> bool:
    """Whether it is to be read as a hub id: `owner/name`, and no folder `owner` is here."""
    return HUB_ID.fullmatch(str(path)) is not None and not path.parent.exists()


def is_checkpoint(path: Path) -> bool:
    """Whether it is a Megatron distributed checkpoint, or the folder around one."""
    return any((folder / _METADATA).is_file() for folder in (path, path / "weights"))


def find_model(path: Path, tell: Tell, like: str | None = None) -> ModelFolder:
    """A model by folder, hub id or Megatron checkpoint, checked and hashed.

    Args:
        path: what the user or a recipe named.
        tell: takes lines for the user.
        like: for checkpoints that do not say so themselves: folder or hub id with config.json and tokenizer.

    Raises:
        CheckpointError: if there is no such model, or it is incomplete.
    """
    if is_hub_id(path):
        return open_model(_downloaded(str(path)), str(path))
    if is_checkpoint(path) and not (path / CONFIG).is_file():
        return open_model(exported(path, tell, like), str(path))
    return open_model(path)


def _downloaded(name: str) -> Path:
    """The hub's snapshot: weights as safetensors, tokenizer and configuration, no code."""
    try:
        fetch: Any = importlib.import_module("huggingface_hub").snapshot_download
        from requests import RequestException
    except ImportError as error:
        raise CheckpointError(
            f"{name}: no such folder; a hub id needs the extra 'train' (pip install 'ekd-nemo[train]')"
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not news
    try:
        return Path(fetch(name, allow_patterns=list(_FILES)))
    except (OSError, ValueError, RequestException) as error:
        raise CheckpointError(
            f"{name}: no such folder, and not to be had from the hub ({type(error).__name__}); "
            "accepted: a run, a Hugging Face folder, a Megatron checkpoint or a hub id"
        ) from None


def exported(checkpoint: Path, tell: Tell, like: str | None = None) -> Path:
    """The checkpoint as a Hugging Face folder, made once for its content.

    Raises:
        CheckpointError: if it is none, or nothing says which model it is of.
    """
    out = EXPORTED / f"{checkpoint.resolve().name}-{_content_key(checkpoint)}"
    if (out / CONFIG).is_file():
        return out
    tell(f"exporting {checkpoint} to {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ekd_nemo.worker", "convert", "export"]
    argv += [str(checkpoint.absolute()), str(out)]
    if like is not None and not (checkpoint / CHECKPOINT_ASSETS / CONFIG).is_file():
        argv.append(f"--like={like}")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if line.strip()] or ["no word"]
        kind = CheckpointError if done.returncode == EXIT_USER else RunError
        raise kind(f"{checkpoint}: cannot be exported: {told[-1].removeprefix('error: ')}")
    return out


def _content_key(checkpoint: Path) -> str:
    """Eight hex digits of its files' names, sizes and times of change."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    facts = [
        f"{path.relative_to(checkpoint)} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in files
    ]
    return sha256("\n".join([str(checkpoint.resolve()), *facts]).encode()).hexdigest()[:8]
