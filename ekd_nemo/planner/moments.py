"""What a training step holds on one rank beside weights, gradients and optimiser, at its fullest moments.

Counted tensor by tensor from megatron-core 0.15.3 as it is configured here (models/config.py, backend/layers.py) and
from losses/; tests/distributed/test_planned_memory.py counts the bytes. Of Transformer Engine's layers, which no
machine at hand can run, only what its modules keep is known.
Not covered: row sums of attention and of norms (a few bytes a head and token), masks of bytes, token ids.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

from ekd_nemo.config.architecture import padded_vocab
from ekd_nemo.planner.assumptions import BYTES
from ekd_nemo.planner.timing import Work

Kind = Literal["gpu", "cpu"]
# The bound on one chunk's logits, losses.response.DEFAULT_MEMORY_BYTES.
LOSS_CHUNK_BYTES: Final = 96 << 20
# One temporary of [rows, vocabulary] in the loss, losses.torch_chunk.TILE_BYTES_*. How many live together: shifted
# logits; with sparse targets their gradient; with dense ones both models', their difference and the teacher's softmax.
TILE_BYTES: Final[dict[Kind, int]] = {"cpu": 1 << 20, "gpu": 64 << 20}
TILES_OF_CE: Final = 1
TILES_OF_SPARSE: Final = 2
TILES_OF_DENSE: Final = 4


@dataclass(frozen=True)
class Features:
    """What the feature loss of a student's stage keeps.

    Attributes:
        pairs: layer pairs whose student layer is on the stage.
        share: of the tokens that take part.
        cosine: keeps both normalised states, where the mean square keeps their difference.
        projected: a linear map from the student's width to the teacher's stands between.
    """

    pairs: int = 0
    share: float = 1.0
    cosine: bool = False
    projected: bool = False


@dataclass(frozen=True)
class Losses:
    """What the losses of a student's stage need.

    Attributes:
        teacher_width: of the hidden states that the loss takes; 0 without.
        dense: whether the teacher's logits are made from them.
        compares: whether there is a response term.
        whole_rows: its gradient needs a sum over the whole vocabulary (all but dense forward KL).
        chunk_tokens: tokens whose logits exist at once; None: from the bound.
        features: of the feature loss.
        in_place: by kernels that make nothing of the logits' size beside them.
    """

    teacher_width: int = 0
    dense: bool = False
    compares: bool = False
    whole_rows: bool = False
    chunk_tokens: int | None = None
    features: Features = Features()
    in_place: bool = False


@dataclass(frozen=True)
class Moment:
    """Bytes at one moment of a step.

    Attributes:
        activations: what the backward pass needs, and its own temporaries.
        loss: what the loss has made.
        optimizer: temporaries of the update.
    """

    activations: float = 0.0
    loss: float = 0.0
    optimizer: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.activations + self.loss + self.optimizer


def fullest_moment(work: Work, kind: Kind, stage: int, losses: Losses) -> Moment:
    """The moment of a step in which a rank of a pipeline stage holds most."""
    moments = [_in_the_layers(work, kind, stage, losses), _at_the_embedding(work, kind, stage)]
    if stage == work.layout.pipeline - 1 and work.head_share:
        moments.append(_in_the_loss(work, kind, stage, losses))
    if kind == "cpu" and work.trained == "full":
        # torch's AdamW makes the square root of a moment and its quotient, parameter by parameter; TE's and Apex' none.
        moments.append(Moment(optimizer=2.0 * 4 * _largest_parameter(work, stage)))
    return max(moments, key=lambda moment: moment.total)


def kept_microbatches(work: Work, stage: int) -> float:
    """Microbatches whose activations a stage keeps at once, in those of all its layers.

    Source: megatron-core 0.15.3, pipeline_parallel/schedules.py, get_pp_rank_microbatches: as many as are run before
    the first backward pass, and one more.
    """
    layout = work.layout
    if layout.virtual == 1:
        return min(layout.pipeline - stage, work.microbatches)
    before = (layout.pipeline - stage - 1) * 2 + (layout.virtual - 1) * layout.pipeline
    return min(before + 1, work.microbatches * layout.virtual) / layout.virtual


def layer_bytes(work: Work, kind: Kind) -> float:
    """Bytes a token that one layer keeps for its backward pass, on one rank, when nothing of it is made again."""
    arch, layout = work.arch, work.layout
    query, key_value = arch.num_heads * arch.head_dim, arch.num_kv_groups * arch.head_dim
    joint, turned = query + 2 * key_value, query + key_value
    # Query and key after the rotation; the joint projection, of which value is a view; attention's output. Flash
    # attention keeps no scores, so that making it again (`selective`) saves none of these.
    attention = turned + joint + query
    masks = 0
    if kind == "cpu" and work.recompute != "selective":
        masks = work.sequence  # torch turns the mask into numbers, [B, 1, S, S], in every layer
        if (
            arch.num_heads > arch.num_kv_groups
        ):  # key and value are repeated to all heads: those are kept
            attention = 4 * query
    # Gate and value in one and the product of both; without a fused activation (transformer/mlp.py) the activated gate
    # and the value once more, to which Megatron adds an offset of 0, as well.
    inside = attention + (3 if kind == "gpu" else 5) * arch.ffn_size
    rotation = 4 * arch.head_dim / work.micro_batch  # sine and cosine for queries and for keys
    between = 2 * _norm_elements(work, kind) * arch.hidden_size
    elements = inside / layout.tensor + between / layout.sequence_shards + rotation + masks
    return elements * BYTES[work.precision]


def _norm_elements(work: Work, kind: Kind) -> int:
    """Elements a unit of width that a norm keeps, with the product that takes its output.

    TE fuses the two and keeps input and output. On the CPU (backend/layers.py) input, the normed input and its
    product with the weight; of 16 bits the input is kept in 32.
    """
    if kind == "gpu":
        return 2
    return 3 if work.precision == "fp32" else 4


def _microbatch_bytes(work: Work, kind: Kind, losses: Losses) -> float:
    """What one microbatch keeps on a stage of the student."""
    layers = work.arch.num_layers / work.layout.pipeline
    if work.recompute == "full":  # the input of each layer
        return layers * work.tokens * _shared_width_bytes(work)
    return layers * work.tokens * layer_bytes(work, kind) + _feature_bytes(work, losses)


def _shared_width_bytes(work: Work) -> float:
    """Bytes a token of a state between the matrices."""
    return work.arch.hidden_size / work.layout.sequence_shards * BYTES[work.precision]


def _gathered_bytes(work: Work) -> float:
    """Megatron's buffer in which the sequence is gathered before a matrix; one for all layers."""
    whole = work.tokens * work.arch.hidden_size * BYTES[work.precision]
    return whole if work.layout.sequence_parallel and work.layout.tensor > 1 else 0.0


def _feature_bytes(work: Work, losses: Losses) -> float:
    """Rows of the student's states and, in fp32, what the distance keeps of both models' (losses/feature.py)."""
    found = losses.features
    rows = work.tokens * found.share / work.layout.sequence_shards
    own = work.arch.hidden_size * BYTES[work.precision] if found.projected else 0
    return found.pairs * rows * (own + 4 * losses.teacher_width * (2 if found.cosine else 1))


def _vocabulary_elements(work: Work) -> int:
    """Of this rank's rows of the embedding or the head."""
    layout, arch = work.layout, work.arch
    return padded_vocab(arch.vocab_size, layout.tensor) // layout.tensor * arch.hidden_size


def _one_tied_weight(work: Work) -> bool:
    """Whether embedding and head are one parameter of one rank: autograd adds their gradients up."""
    return work.arch.tied_embeddings and work.layout.pipeline == 1 and work.trained == "full"


def _in_the_layers(work: Work, kind: Kind, stage: int, losses: Losses) -> Moment:
    """The backward pass has reached the middle of an MLP: gradients of product, activated gate and value."""
    size, layout = BYTES[work.precision], work.layout
    held = kept_microbatches(work, stage) * _microbatch_bytes(work, kind, losses)
    gradients = 2 * work.arch.ffn_size / layout.tensor * size + _shared_width_bytes(work)
    if work.recompute == "full":  # of one layer all is there again; its input is counted already
        gradients += layer_bytes(work, kind) - _shared_width_bytes(work)
    # The head's gradient waits for that of the embedding.
    head = _vocabulary_elements(work) * size if _one_tied_weight(work) else 0
    return Moment(held + work.tokens * gradients + _gathered_bytes(work), head)


def _at_the_embedding(work: Work, kind: Kind, stage: int) -> Moment:
    """The end of a backward pass on the first stage: the embedding's gradient has all its rows."""
    if stage or work.trained != "full":
        return Moment()
    rows = _vocabulary_elements(work) * BYTES[work.precision]
    others = (kept_microbatches(work, stage) - 1) * _microbatch_bytes(work, kind, Losses())
    if _one_tied_weight(work):  # with that of the head, and their sum
        return Moment(others + 2 * rows + _gathered_bytes(work), rows)
    return Moment(others + rows + _gathered_bytes(work))


def _in_the_loss(work: Work, kind: Kind, stage: int, losses: Losses) -> Moment:
    """All of a microbatch is kept, and a chunk of its logits is there."""
    final = (_norm_elements(work, "cpu") if kind == "cpu" else 2) * _shared_width_bytes(work)
    held = kept_microbatches(work, stage) * _microbatch_bytes(work, kind, losses)
    held += work.tokens * final + _gathered_bytes(work)
    return Moment(held, _loss_bytes(work, kind, losses))


def _loss_bytes(work: Work, kind: Kind, losses: Losses) -> float:
    """The chunk loop of losses/fused_linear.py, at its fullest."""
    arch, layout, size = work.arch, work.layout, BYTES[work.precision]
    width = losses.teacher_width if losses.dense else 0
    columns = math.ceil(arch.vocab_size / layout.tensor)
    rows = _chunk_rows(work, losses, columns)
    logits = rows * columns * size * (2 if losses.dense else 1)
    states = rows * (arch.hidden_size + width) * size
    tile = rows
    if not (losses.whole_rows and layout.tensor > 1):
        tile = min(rows, max(1, TILE_BYTES[kind] // (columns * 4)))
    response = TILES_OF_DENSE if losses.dense else TILES_OF_SPARSE
    number = response if losses.compares else TILES_OF_CE
    number += tile < rows  # the tile before is let go of when the next has been made
    tiles = 0 if losses.in_place else number * tile * columns * 4
    # The gradients of head (summed in fp32) and hidden states, which wait for the backward pass.
    head = 4 * _vocabulary_elements(work) if work.trained == "full" else 0
    if head and work.precision != "fp32":
        head += size * columns * arch.hidden_size  # one chunk's part of it
    hidden = work.tokens * arch.hidden_size * size
    if layout.sequence_parallel:
        hidden += work.tokens * (arch.hidden_size + width) * size  # gathered
    return logits + states + tiles + head + hidden


def _chunk_rows(work: Work, losses: Losses, columns: int) -> int:
    """Tokens of a chunk: near-equal chunks within the bound, losses.response._chunk_tokens."""
    learned = max(1, math.ceil(work.tokens * work.head_share))
    if losses.chunk_tokens is not None:
        return min(losses.chunk_tokens, learned)
    row = columns * BYTES[work.precision] * (2 if losses.dense else 1)
    most = max(1, LOSS_CHUNK_BYTES // row)
    return math.ceil(learned / math.ceil(learned / most))


def _largest_parameter(work: Work, stage: int) -> int:
    """Elements of the largest parameter that a rank of a stage holds."""
    layout, arch = work.layout, work.arch
    outer = stage in (0, layout.pipeline - 1)
    first = 2 * arch.ffn_size * arch.hidden_size // layout.tensor
    return max(first, _vocabulary_elements(work) if outer else 0)
