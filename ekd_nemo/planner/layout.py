"""How a model is cut over ranks, and what one rank holds of it."""

from dataclasses import dataclass

from ekd_nemo.config.architecture import Architecture, padded_vocab
from ekd_nemo.config.recipe import Parallel


@dataclass(frozen=True)
class Layout:
    """Ranks of one model.

    Attributes:
        tensor: ranks that share each matrix.
        pipeline: stages.
        data: copies.
        virtual: model chunks a stage; 1 without interleaving.
        context: ranks that share a sequence; recipes have 1, published runs do not.
        sequence_parallel: whether tensor ranks share out the sequence between the matrices.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    virtual: int = 1
    context: int = 1
    sequence_parallel: bool = False

    @classmethod
    def of(cls, parallel: Parallel, ranks: int) -> "Layout":
        """The layout of a recipe's model on `ranks` ranks, which hold whole copies."""
        copy = parallel.tensor * parallel.pipeline
        assert ranks % copy == 0
        return cls(
            parallel.tensor,
            parallel.pipeline,
            ranks // copy,
            parallel.virtual_pipeline or 1,
            sequence_parallel=parallel.sequence_parallel,
        )

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.tensor * self.pipeline * self.context * self.data

    def stage_of(self, rank: int) -> int:
        """The stage of a rank: Megatron's default order has tensor ranks innermost and stages outermost."""
        return rank // (self.tensor * self.context * self.data)

    @property
    def sequence_shards(self) -> int:
        """Ranks that share what lies between the matrices: norms, residuals, final hidden states."""
        return self.tensor if self.sequence_parallel else 1


def stage_parameters(arch: Architecture, layout: Layout, stage: int, *, head: bool = True) -> int:
    """Parameters that one rank of a pipeline stage holds, vocabulary padding included.

    Matrices and their biases are cut over the tensor ranks, norms are not. With tied embeddings the
    last stage holds a copy of the embedding where it is not the first as well; without `head` it holds
    no output layer.
    """
    query, key_value = arch.num_heads * arch.head_dim, arch.num_kv_groups * arch.head_dim
    matrices = arch.hidden_size * (2 * query + 2 * key_value + 3 * arch.ffn_size)
    bias = query + 2 * key_value if arch.qkv_bias else 0
    layer = (matrices + bias) // layout.tensor + 2 * arch.hidden_size
    total = arch.num_layers // layout.pipeline * layer
    vocabulary = padded_vocab(arch.vocab_size, layout.tensor) // layout.tensor * arch.hidden_size
    first, last = stage == 0, stage == layout.pipeline - 1
    total += vocabulary if first else 0
    if last:
        total += arch.hidden_size  # the final norm
        total += vocabulary if head and not (arch.tied_embeddings and first) else 0
    return total


def lora_parameters(arch: Architecture, layout: Layout, rank: int, modules: tuple[str, ...]) -> int:
    """Adapter parameters that one rank holds, as NeMo cuts them over tensor ranks.

    An adapter is A [rank, in] and B [out, rank]. Of both, the side that is cut in the matrix is cut
    too, and NeMo cuts the other side's rank dimension.
    """
    query, key_value = arch.num_heads * arch.head_dim, arch.num_kv_groups * arch.head_dim
    sides = {
        "linear_qkv": (arch.hidden_size, query + 2 * key_value),
        "linear_proj": (query, arch.hidden_size),
        "linear_fc1": (arch.hidden_size, 2 * arch.ffn_size),
        "linear_fc2": (arch.ffn_size, arch.hidden_size),
    }
    a_layer = sum(rank * sum(sides[module]) for module in modules)
    return arch.num_layers // layout.pipeline * a_layer // layout.tensor
