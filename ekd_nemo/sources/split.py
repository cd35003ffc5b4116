"""Which documents are held out: a function of content, seed and fraction alone."""

from hashlib import blake2b

_KEY_SPACE = 2**64


def content_key(*texts: str) -> bytes:
    """A key of the content: equal texts get the same key and hence the same side."""
    digest = blake2b(digest_size=16)
    for text in texts:
        raw = " ".join(text.split()).encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.digest()


def in_validation(key: bytes, seed: int, fraction: float) -> bool:
    """Whether the document with this content key belongs to the validation side.

    Args:
        key: from `content_key`.
        seed: another seed holds out other documents.
        fraction: expected share of the documents, 0 (none) up to, not including, 1.
    """
    drawn = blake2b(b"%d:" % seed + key, digest_size=8, person=b"ekd-split").digest()
    return int.from_bytes(drawn, "little") < fraction * _KEY_SPACE
