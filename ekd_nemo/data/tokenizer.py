"""Loading the tokenizer of a build, from a folder or the hub; its own code is never run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoTokenizer

from ekd_nemo.errors import DataError
from ekd_nemo.sources.manifest import tokenizer_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PATTERNS = (
    "config.json",
    "tokenizer*",
    "*token*.json",
    "merges.txt",
    "vocab.json",
    "chat_template.jinja",
)


def load_tokenizer(name: str) -> tuple["PreTrainedTokenizerFast", Path]:
    """The tokenizer, and the folder of its files.

    Raises:
        DataError: if there is no such folder or hub id, or it holds no tokenizer that can be read.
    """
    folder = Path(name) if Path(name).is_dir() else _downloaded(name)
    tokenizer_sha256(folder)  # says in one line when the folder holds no tokenizer
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), use_fast=True, trust_remote_code=False
        ), folder
    except (OSError, ValueError) as error:
        raise DataError(
            f"{name}: the tokenizer cannot be read ({' '.join(str(error).split())})"
        ) from error


def describe_tokenizer(
    name: str, folder: Path, tokenizer: "PreTrainedTokenizerFast"
) -> dict[str, Any]:
    """What a manifest records; `pad_id` is the end of sequence where there is no pad token."""
    pad = tokenizer.pad_token_id
    return {
        "name": name,
        "sha256": tokenizer_sha256(folder),
        "vocab_size": len(tokenizer),
        "bos_id": tokenizer.bos_token_id,
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.eos_token_id if pad is None else pad,
    }


def _downloaded(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except HFValidationError as error:
        raise DataError(
            f"tokenizer {name}: no such folder; expected a folder with tokenizer.json, or a hub id"
        ) from error
    except (OSError, HfHubHTTPError) as error:
        raise DataError(
            f"tokenizer {name}: no such folder, and not to be had from the hub "
            f"({' '.join(str(error).split())})"
        ) from error
