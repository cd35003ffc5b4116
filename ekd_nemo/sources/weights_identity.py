"""Which weights a Hugging Face folder holds, without reading them all.

Every tensor is looked at: its name, type, shape, and its bytes at sixteen even places. Two
trainings of one architecture differ in practically every value, so they never share a fingerprint.
Not covered: an edit of a few single values between those places.
"""

import json
import struct
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from ekd_nemo.errors import CheckpointError

PLACES = 16
PIECE_BYTES = 64
CONFIG_KEYS_LEFT_OUT = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")


def weights_fingerprint(folder: Path) -> str:
    """32 hex digits over config.json and every tensor of the folder's safetensors files.

    How tensors are spread over files does not count.

    Raises:
        CheckpointError: no config.json, no safetensors file, or one that cannot be read.
    """
    digest = blake2b(digest_size=16, person=b"ekd-weights")
    try:
        config = cast("dict[str, Any]", json.loads((folder / "config.json").read_bytes()))
        for key in CONFIG_KEYS_LEFT_OUT:
            config.pop(key, None)
        digest.update(json.dumps(config, sort_keys=True).encode())
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{folder}: holds no safetensors file to tell its weights by")
        for text in sorted(line for file in files for line in _tensors(file)):
            digest.update(text)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise CheckpointError(
            f"{folder}: its weights cannot be told ({type(error).__name__}: {error})"
        ) from error
    return digest.hexdigest()


def _tensors(file: Path) -> Iterator[bytes]:
    """One line of bytes for each tensor of a file."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = cast("dict[str, dict[str, Any]]", json.loads(stream.read(length)))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, stop = entry["data_offsets"]
            pieces = [f"{name} {entry['dtype']} {entry['shape']} ".encode()]
            for place in range(PLACES):
                offset = start + (stop - start) * place // PLACES
                stream.seek(8 + length + offset)
                pieces.append(stream.read(min(PIECE_BYTES, stop - offset)))
            yield b"".join(pieces)
