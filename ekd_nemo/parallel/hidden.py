"""A GPT that ends at its final hidden states: no logits are ever made."""

from typing import Any

from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from ekd_nemo.parallel.batch import Microbatch


class HiddenStateGPT(GPTModel):
    """Megatron's GPT whose last stage returns [S, B, H] after the final norm.

    With sequence parallelism that is [S / ranks, B, H]. The losses take these and the head.
    Not covered: multi-token prediction, inference.
    """

    def _postprocess(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states

    @property
    def head(self) -> Tensor:
        """[V_local, H], this rank's rows of the output layer or the tied embedding; last stage."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight


def hidden_states(model: Any, batch: Microbatch) -> Tensor:
    """Run a (wrapped) `HiddenStateGPT` on one microbatch."""
    return model(input_ids=batch.tokens, position_ids=batch.position_ids, **batch.attention)
