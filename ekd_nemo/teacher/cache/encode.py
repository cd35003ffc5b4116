"""From one sample's teacher outputs to a row of a block."""

from collections.abc import Sequence

from torch import Tensor

from ekd_nemo.sources.cache_manifest import SPARSE, CacheIdentity
from ekd_nemo.teacher.cache.block import Row
from ekd_nemo.teacher.cache.dense_codec import encode_dense
from ekd_nemo.teacher.cache.select import offsets_of, select
from ekd_nemo.teacher.cache.sparse_codec import Ragged, encode_sparse, joined


def encode_sample(
    sample: str,
    num_tokens: int,
    identity: CacheIdentity,
    *,
    logits: Tensor | Sequence[Tensor] | None = None,
    dense: Sequence[Tensor] = (),
) -> Row:
    """Make the row that a cache holds of a sample.

    Args:
        sample: its hash.
        num_tokens: n, without padding.
        identity: kind and settings.
        logits: [n, V] for the sparse kinds, or chunks of consecutive tokens.
        dense: for hidden, the final states (if kept) and each layer in the identity's order, [n, H];
            for embeddings one tensor [segments, H].
    """
    if identity.kind not in SPARSE:
        return Row(sample, num_tokens, encode_dense(dense, identity))
    assert logits is not None
    chunks = [logits] if isinstance(logits, Tensor) else logits
    offsets = offsets_of(identity.seed or 0, sample, num_tokens)
    found: list[Ragged] = []
    start = 0
    for chunk in chunks:
        found.append(select(chunk, identity, offsets[start : start + len(chunk)]))
        start += len(chunk)
    return Row(sample, num_tokens, encode_sparse(joined(found), identity))
