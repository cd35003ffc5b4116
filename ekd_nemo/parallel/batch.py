"""A microbatch, and how its segments become attention arguments on each device."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

TENSORS = ("tokens", "labels", "loss_mask", "position_ids", "segment_ids")


@dataclass(frozen=True)
class Microbatch:
    """`micro_batch_size` packed samples.

    Attributes:
        tokens: [B, S] int64.
        labels: [B, S] int64, the next token of the segment.
        loss_mask: [B, S] bool; True where a token carries loss.
        position_ids: [B, S] int64, counted inside each segment.
        segment_ids: [B, S] int64; -1 is padding.
        sample_hashes: [B], what identifies each sample, see `data.packed.sample_hash`.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    segment_ids: Tensor
    sample_hashes: tuple[str, ...]

    @classmethod
    def of(cls, sample: Mapping[str, Any], device: torch.device) -> "Microbatch":
        """Take the named tensors to `device`."""
        tensors = {name: sample[name].to(device, non_blocking=True) for name in TENSORS}
        return cls(**tensors, sample_hashes=tuple(sample["sample_hashes"]))

    @property
    def num_tokens(self) -> Tensor:
        """Tokens that are not padding; int64 scalar."""
        return (self.segment_ids >= 0).sum()

    @property
    def num_valid(self) -> Tensor:
        """Tokens that carry loss; int64 scalar."""
        return self.loss_mask.sum()

    @property
    def flat_labels(self) -> Tensor:
        """[S * B], in the order of Megatron's hidden states, which are [S, B, H]."""
        return self.labels.transpose(0, 1).reshape(-1)

    @property
    def flat_valid(self) -> Tensor:
        """[S * B] bool, in the order of `flat_labels`."""
        return self.loss_mask.transpose(0, 1).reshape(-1)

    @cached_property
    def segments_per_sample(self) -> Tensor:
        """[B] int64, on the CPU: how many segments each sample holds."""
        return self.segment_ids.max(dim=1).values.cpu() + 1

    @property
    def num_segments(self) -> int:
        """Segments of all samples."""
        return int(self.segments_per_sample.sum())

    @cached_property
    def flat_segments(self) -> Tensor:
        """[S * B] int64 in the order of `flat_labels`; numbered through all samples, -1 at padding."""
        counts = self.segments_per_sample
        first = (counts.cumsum(0) - counts).to(self.segment_ids.device)[:, None]
        numbers = torch.where(self.segment_ids >= 0, self.segment_ids + first, self.segment_ids)
        return numbers.transpose(0, 1).reshape(-1)

    @cached_property
    def attention(self) -> dict[str, Any]:
        """The arguments that keep attention causal and inside segments.

        With CUDA, cumulative segment lengths for Transformer Engine; without, a mask. Megatron
        takes rotary angles from the place in the row, not from `position_ids`. That does no harm
        under a mask: rotary attention depends on the distance of two tokens only, and tokens of
        one segment keep their distance. With cumulative lengths Megatron restarts them itself.
        """
        if self.tokens.is_cuda:
            return {"attention_mask": None, "packed_seq_params": _packed(self.segment_ids)}
        return {"attention_mask": _block_diagonal(self.segment_ids)}


def _block_diagonal(segment_ids: Tensor) -> Tensor:
    """[B, 1, S, S] bool, True where a pair must not attend; padding attends to padding only."""
    length = segment_ids.shape[1]
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    return ~(same & causal)


def _packed(segment_ids: Tensor) -> PackedSeqParams:
    """Cumulative lengths of the segments of all rows; Transformer Engine's `thd` layout."""
    flat = segment_ids.reshape(-1)
    row = torch.arange(flat.numel(), device=flat.device) // segment_ids.shape[1]
    new = (flat[1:] != flat[:-1]) | (row[1:] != row[:-1])
    inner = new.nonzero().squeeze(1) + 1
    ends = torch.tensor([flat.numel()], device=flat.device)
    starts = torch.cat([torch.zeros_like(ends), inner, ends]).to(torch.int32)
    longest = int((starts[1:] - starts[:-1]).max())
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=starts,
        cu_seqlens_kv=starts,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
