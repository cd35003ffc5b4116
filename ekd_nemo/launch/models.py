"""The models that a recipe names, looked at before anything is made: architecture and token ids."""

import importlib
import logging
from pathlib import Path
from typing import Any

from ekd_nemo.config.architecture import CONFIG_FILE, HUB_ID, Architecture, read_architecture
from ekd_nemo.config.resolve import ResolvedRecipe
from ekd_nemo.errors import CheckpointError, ConfigError, EkdError
from ekd_nemo.sources.manifest import MANIFEST, read_manifest
from ekd_nemo.sources.token_map import token_map_sha256


def is_hub_id(text: str) -> bool:
    """Whether a path is to be read as a hub id: `owner/name`, and no folder `owner` is here."""
    return HUB_ID.fullmatch(text) is not None and not Path(text).parent.exists()


def model_paths(resolved: ResolvedRecipe) -> dict[str, str]:
    """The recipe's keys that name a model, and what they name."""
    recipe = resolved.recipe
    paths = {} if recipe.teacher is None else {"teacher.path": recipe.teacher.path}
    if recipe.student.init.path is not None:
        paths["student.init.path"] = recipe.student.init.path
    return paths


def architecture(
    resolved: ResolvedRecipe, key: str, path: str, ask_hub: bool
) -> Architecture | None:
    """The model of a folder or hub id; None for a hub id that is not asked for.

    Raises: CheckpointError, with the place of the key.
    """
    if is_hub_id(path) and not ask_hub:
        return None
    try:
        return read_architecture(_hub_config(path) if is_hub_id(path) else path)
    except EkdError as error:
        hint = ""
        if not Path(path).exists() and Path(path).parts[:2] == ("assets", "teacher"):
            hint = " (make it with: python tools/make_teacher.py)"
        raise CheckpointError(f"{resolved.place(key)}: {key}: {error}{hint}") from error


def _hub_config(name: str) -> Path:
    """The folder of a hub model's config.json, and of nothing else of it.

    Raises: CheckpointError.
    """
    try:
        fetch: Any = importlib.import_module("huggingface_hub").hf_hub_download
        from requests import RequestException
    except ImportError as error:
        raise CheckpointError(
            f"{name}: no such folder; a hub id needs the extra 'train' (pip install 'ekd-nemo[train]')"
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not news
    try:
        return Path(fetch(name, CONFIG_FILE)).parent
    except (OSError, ValueError, RequestException) as error:
        raise CheckpointError(
            f"{name}: no such folder, and not to be had from the hub ({type(error).__name__}); "
            "accepted: a Hugging Face folder or a hub id"
        ) from None


def check_token_ids(resolved: ResolvedRecipe) -> None:
    """Refuse models and shards whose token ids stand for different texts.

    Compares what lies in local folders; hub ids, and folders without a tokenizer, are passed over.

    Raises: ConfigError, with the places of both keys.
    """
    named = {key: path for key, path in model_paths(resolved).items() if Path(path).is_dir()}
    data = resolved.recipe.data
    if data.build is not None:
        named["data.build.tokenizer"] = data.build.tokenizer
    elif (Path(data.path) / MANIFEST).is_file():
        tokenizer = read_manifest(data.path)["settings"]["tokenizer"]
        named["data.path"] = str(tokenizer)
    maps = [(key, path, token_map_sha256(Path(path))) for key, path in named.items()]
    known = [entry for entry in maps if entry[2] is not None]
    for key, path, found in known[1:]:
        first_key, first_path, first = known[0]
        if found != first:
            raise ConfigError(
                f"{resolved.place(key)}: {key}: the tokenizer of {path} gives other ids than that of "
                f"{first_path} ({first_key}); accepted: models and shards that share one"
            )
