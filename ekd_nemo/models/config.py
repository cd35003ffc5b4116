"""NeMo's model configuration for one decoder, on the device and in the layout at hand."""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from nemo.collections.llm import GPTConfig

from ekd_nemo.backend.cpu import transformer_overrides
from ekd_nemo.backend.layers import decoder_block_spec
from ekd_nemo.config.architecture import Architecture, padded_vocab
from ekd_nemo.config.recipe import Parallel, Recompute
from ekd_nemo.models.weights import model_kwargs, transformer_kwargs
from ekd_nemo.parallel.hidden import HiddenStateGPT

RECOMPUTE: dict[Recompute, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}

# With CUDA: an MLP then keeps three tensors of its width for the backward pass, else five. NeMo sets it for
# Llama as well (nemo/collections/llm/gpt/model/llama.py:77).
FUSIONS: dict[str, Any] = {"bias_activation_fusion": True}


@dataclass
class DecoderConfig(GPTConfig):
    """A Llama or Qwen2 decoder that ends at its hidden states."""

    architecture: Architecture | None = None

    def configure_model(
        self,
        tokenizer: Any,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> HiddenStateGPT:
        """Build the part of the model that this rank holds; its weights are not set.

        Needs Megatron's parallel state. `tokenizer` is not read: the vocabulary is given.
        """
        arch = self.architecture
        assert arch is not None
        assert self.vocab_size is not None
        whole = self.virtual_pipeline_model_parallel_size is None
        first = parallel_state.is_pipeline_first_stage(ignore_virtual=whole, vp_stage=vp_stage)
        last = parallel_state.is_pipeline_last_stage(ignore_virtual=whole, vp_stage=vp_stage)
        return HiddenStateGPT(
            self,
            transformer_layer_spec=decoder_block_spec(self, vp_stage),
            vocab_size=self.vocab_size,
            max_sequence_length=self.seq_length,
            pre_process=first if pre_process is None else pre_process,
            post_process=last if post_process is None else post_process,
            vp_stage=vp_stage,
            **model_kwargs(arch),
        )


def decoder_config(
    arch: Architecture,
    parallel: Parallel,
    seq_length: int,
    dtype: torch.dtype,
    *,
    recompute: Recompute = "none",
) -> DecoderConfig:
    """The configuration of a decoder that is trained, in a layout; frozen ones are `models.frozen`'s.

    Args:
        arch: the decoder.
        parallel: its layout.
        seq_length: tokens of a sample.
        dtype: of activations between pipeline stages and, where no optimiser keeps master weights,
            of the parameters.
        recompute: which activations the backward pass makes again; `full` keeps the input of each
            layer alone.
    """
    rotary = model_kwargs(arch)
    return DecoderConfig(
        architecture=arch,
        seq_length=seq_length,
        vocab_size=padded_vocab(arch.vocab_size, parallel.tensor),
        position_embedding_type=rotary["position_embedding_type"],
        rotary_base=rotary["rotary_base"],
        share_embeddings_and_output_weights=arch.tied_embeddings,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline,
        # Two interleaved stages exchange an activation and a gradient with the same neighbour at once.
        # In one batch of messages Megatron-Core mixes them up (its own arguments.py refuses that).
        overlap_p2p_comm=parallel.virtual_pipeline is not None,
        batch_p2p_comm=parallel.virtual_pipeline is None,
        # Overlapped, a sent tensor is freed while gloo still reads it; NCCL keeps the order of its stream.
        deallocate_pipeline_outputs=torch.cuda.is_available() or parallel.virtual_pipeline is None,
        sequence_parallel=parallel.sequence_parallel,
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        # Others replace these first weights; but only where Megatron draws them do its layers mark which parameters are
        # cut over tensor-parallel ranks; without the marks the norm of the gradients counts one rank's share alone.
        perform_initialization=True,
        **RECOMPUTE[recompute],
        **transformer_kwargs(arch),
        **(FUSIONS | transformer_overrides()),
    )
