"""A frozen teacher in a layout of its own, on plain Megatron-Core: built and filled; no NeMo."""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from ekd_nemo.backend.cpu import transformer_overrides
from ekd_nemo.backend.device import compute_device
from ekd_nemo.backend.layers import decoder_block_spec
from ekd_nemo.config.architecture import Architecture, padded_vocab
from ekd_nemo.config.recipe import Precision
from ekd_nemo.models.precision import DTYPES, transformer_settings
from ekd_nemo.models.weights import TensorSource, load_weights, model_kwargs, transformer_kwargs
from ekd_nemo.models.weights.parts import Rank, VocabRows
from ekd_nemo.models.weights.source import HEAD
from ekd_nemo.parallel.frozen_stage import FrozenStage
from ekd_nemo.parallel.hidden import HiddenStateGPT
from ekd_nemo.parallel.shared_teacher import SharedTeacher
from ekd_nemo.parallel.teacher_groups import teacher_groups
from ekd_nemo.teacher.layout import Layout, Place


def frozen_stage(
    source: TensorSource,
    layout: Layout,
    precision: Precision,
    seq_length: int,
    *,
    offload: bool = False,
) -> FrozenStage:
    """This rank's part of a teacher whose layout covers all ranks of the default group.

    All ranks call this together.

    Args:
        source: the teacher's weights.
        layout: the teacher's.
        precision: of weights and activations; fp8 needs Transformer Engine.
        seq_length: tokens of a sample.
        offload: keep the weights in host memory between passes.

    Raises: CheckpointError or LayoutError if the weights do not fit.
    """
    place = layout.place(dist.get_rank())
    groups = teacher_groups(layout)
    # The student multiplies with rows of the head in its own layout: a head here would only take room.
    model = frozen_model(source, layout, place, precision, seq_length, groups, head=False)
    return FrozenStage(model, layout, place, offload=offload)


def shared_teacher(
    source: TensorSource, layout: Layout, precision: Precision, seq_length: int
) -> SharedTeacher:
    """A whole teacher on the groups of Megatron's parallel state, which `layout` describes.

    Args and errors: as for `frozen_stage`; no collectives.
    """
    place = layout.place(dist.get_rank())
    return SharedTeacher(frozen_model(source, layout, place, precision, seq_length))


def frozen_model(
    source: TensorSource,
    layout: Layout,
    place: Place,
    precision: Precision,
    seq_length: int,
    groups: ProcessGroupCollection | None = None,
    *,
    head: bool = True,
) -> HiddenStateGPT:
    """The part of a teacher that belongs at `place`, with its weights.

    Args:
        source: the weights.
        layout: of the teacher.
        place: in it.
        precision: of weights and activations.
        seq_length: tokens of a sample.
        groups: its process groups; None: those of Megatron's parallel state.
        head: whether the last stage keeps an output layer of its own.

    Raises: CheckpointError or LayoutError if the weights do not fit.
    """
    arch = source.architecture
    config = frozen_config(arch, layout, precision)
    model = HiddenStateGPT(
        config,
        transformer_layer_spec=decoder_block_spec(config, pp_rank=place.pipeline),
        vocab_size=padded_vocab(arch.vocab_size, layout.tensor),
        max_sequence_length=seq_length,
        pre_process=place.pipeline == 0,
        post_process=place.pipeline == layout.pipeline - 1,
        pg_collection=groups,
        **model_kwargs(arch),
    )
    module: Any = model
    if not head and hasattr(module, "output_layer"):
        del module.output_layer
    model.to(compute_device())
    load_weights([model], source, place.tensor, layout.tensor)
    return model


def frozen_config(arch: Architecture, layout: Layout, precision: Precision) -> TransformerConfig:
    """Megatron's configuration of a teacher."""
    dtype = DTYPES[precision]
    settings = transformer_kwargs(arch) | transformer_overrides() | transformer_settings(precision)
    return TransformerConfig(
        **settings,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        sequence_parallel=layout.sequence_parallel,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        perform_initialization=False,
    )


def head_rows(
    source: TensorSource,
    student: Layout,
    place: Place,
    precision: Precision,
    vocab_size: int | None = None,
) -> Tensor:
    """[V_local, H_t]: the teacher's head cut as the student's vocabulary is, from the source.

    Args:
        source: the teacher's weights.
        student: the student's layout.
        place: in it.
        precision: the teacher's.
        vocab_size: the student's; None: the teacher's. Rows that the teacher lacks are zeros.
    """
    vocab_size = source.architecture.vocab_size if vocab_size is None else vocab_size
    rows = padded_vocab(vocab_size, student.tensor) // student.tensor
    rank = Rank(place.tensor, student.tensor)
    found = VocabRows(HEAD).read_padded(source, rank, rows)
    return found.to(compute_device(), DTYPES[precision])
