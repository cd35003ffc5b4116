"""Which text stands behind each token id: what teacher, student and shards must agree on.

Two tokenizers of one family may differ in chat template or settings and still share every id; that is what is
compared here, and nothing else.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from ekd_nemo.errors import DataError

TOKENIZER_FILE = "tokenizer.json"


def token_map_sha256(folder: Path) -> str | None:
    """One hash over all pairs of id and token.

    Args:
        folder: of a Hugging Face model or tokenizer.

    Returns:
        None where the folder has no tokenizer.json (a slow tokenizer, or none).

    Raises:
        DataError: if there is one that cannot be read.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        return None
    try:
        pairs = _pairs(json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: cannot be read as a tokenizer ({error!r})") from error
    digest = sha256()
    for number, token in sorted(pairs.items()):
        digest.update(f"{number} {token!r}\n".encode())
    return digest.hexdigest()


def _pairs(tokenizer: dict[str, Any]) -> dict[int, str]:
    """Ids to tokens; `vocab` is a table in BPE and WordPiece, a list of (token, score) in Unigram."""
    vocab: Any = tokenizer["model"]["vocab"]
    if isinstance(vocab, dict):
        pairs = {number: token for token, number in cast("dict[str, int]", vocab).items()}
    else:
        pairs = {number: str(entry[0]) for number, entry in enumerate(vocab)}
    for added in tokenizer.get("added_tokens") or ():
        pairs[int(added["id"])] = str(added["content"])
    return pairs
