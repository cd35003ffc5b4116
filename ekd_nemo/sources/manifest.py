"""The manifest of shards: what they were built from, and whether a build asks for the same."""

import json
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, cast

from ekd_nemo.config.data import DataBuild, JsonlSource, PythonDocsSource
from ekd_nemo.errors import DataError
from ekd_nemo.sources import python_docs

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_WAY_OUT = "give another folder, or remove this one"
_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Raises:
        DataError: if it is not there, is not a manifest, or is of another version.
    """
    path = Path(folder) / MANIFEST
    try:
        manifest: Any = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no {MANIFEST}; expected a folder made by `ekd data build`"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a manifest of shards ({error})") from error
    if not isinstance(manifest, dict) or "schema_version" not in manifest:
        raise DataError(f"{path}: is not a manifest of shards; it has no schema_version")
    found = cast("dict[str, Any]", manifest)
    if found["schema_version"] != SCHEMA_VERSION:
        raise DataError(
            f"{path}: schema_version is {found['schema_version']}; "
            f"this version of ekd reads {SCHEMA_VERSION}"
        )
    return found


def sequence_length(folder: Path | str) -> int:
    """Tokens of a sample of the shards; raises as `read_manifest`."""
    return int(read_manifest(folder)["sequence_length"])


def shards_ready(folder: Path | str, settings: DataBuild) -> bool:
    """Whether the folder holds the shards of these settings; False where nothing is there yet.

    Compares the settings, the hashes of the inputs that are at hand and the sizes of the shards'
    files; a hub data set is known by its name and revision only.

    Raises:
        DataError: if the folder holds something else, which is never overwritten.
    """
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    manifest = read_manifest(folder)
    wanted = settings.model_dump(mode="json")
    differing = [key for key in wanted if manifest["settings"].get(key) != wanted[key]]
    if differing:
        raise DataError(
            f"{folder}: holds shards built with other settings "
            f"({_difference(manifest['settings'], wanted, differing)}); {_WAY_OUT}"
        )
    _refuse_changed_inputs(folder, manifest["inputs"], input_hashes(settings))
    refuse_damaged_files(folder, manifest["files"])
    return True


def input_hashes(settings: DataBuild) -> dict[str, str]:
    """The sha256 of every local input that is at hand: JSONL files, python-docs, the tokenizer.

    Raises:
        DataError: if the tokenizer is a folder that holds no tokenizer.
    """
    hashes: dict[str, str] = {}
    for source in settings.sources:
        if isinstance(source, PythonDocsSource):
            hashes["python-docs"] = python_docs.text_sha256()
        elif isinstance(source, JsonlSource):
            hashes.update(
                {path: sha256_of(Path(path)) for path in source.paths if Path(path).is_file()}
            )
    if Path(settings.tokenizer).is_dir():
        hashes["tokenizer"] = tokenizer_sha256(Path(settings.tokenizer))
    return hashes


def tokenizer_sha256(folder: Path) -> str:
    """One hash over the files that define a tokenizer, by name and content.

    Raises:
        DataError: if the folder holds none of them.
    """
    digest = sha256()
    present = [name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if (
        "tokenizer.json" not in present
        and "tokenizer.model" not in present
        and "vocab.json" not in present
    ):
        raise DataError(
            f"{folder}: holds no tokenizer; expected tokenizer.json, tokenizer.model or vocab.json"
        )
    for name in present:
        digest.update(f"{name} {sha256_of(folder / name)}\n".encode())
    return digest.hexdigest()


def shards_sha256(folder: Path | str) -> str | None:
    """One hash of the shards' files, from their names and hashes in the manifest; None where none are built.

    Raises:
        DataError: if there is a manifest and it is none.
    """
    if not (Path(folder) / MANIFEST).is_file():
        return None
    files = read_manifest(folder)["files"]
    lines = [f"{name} {files[name]['sha256']}\n" for name in sorted(files)]
    return sha256("".join(lines).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, read in pieces."""
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


def refuse_damaged_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Compare the sizes of the shards' files with those in the manifest; contents are not read.

    Raises:
        DataError: for the first file that is missing or of another size.
    """
    for name, recorded in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != recorded["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise DataError(f"{path}: {found}, the manifest says {recorded['bytes']} bytes")


def _refuse_changed_inputs(folder: Path, recorded: dict[str, str], at_hand: dict[str, str]) -> None:
    changed = sorted(name for name, value in at_hand.items() if recorded.get(name, value) != value)
    if changed:
        raise DataError(
            f"{folder}: its shards were built before {', '.join(changed)} changed; {_WAY_OUT}"
        )


def _difference(there: dict[str, Any], wanted: dict[str, Any], keys: list[str]) -> str:
    return "; ".join(
        f"{key}: there {json.dumps(there.get(key))}, wanted {json.dumps(wanted[key])}"
        for key in keys
    )
