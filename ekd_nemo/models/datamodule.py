"""The packed shards as Lightning and NeMo take them: one item is the rank's share of a step."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from nemo.lightning.pytorch.plugins.data_sampler import DataSampler
from torch.utils.data import DataLoader, Dataset, Sampler

from ekd_nemo.config.recipe import Train
from ekd_nemo.data.order import step_microbatches
from ekd_nemo.data.packed import PackedDataset
from ekd_nemo.errors import DataError
from ekd_nemo.models.stacking import stack

StepItem = list[dict[str, Any]]


class StepBatches(Dataset[StepItem]):
    """Item k: this data-parallel rank's microbatches of step k + 1, each {name: [B, S]}.

    What a step sees is a function of the seed, the step and the global batch size. How many ranks
    share it, and in which microbatches, changes nothing; nor does a restart.
    """

    def __init__(
        self, samples: PackedDataset, train: Train, seed: int, dp_rank: int, dp_size: int
    ) -> None:
        """Order `samples` by `seed`; the rank takes its share of `train.global_batch_size`."""
        self._samples, self._train, self._seed = samples, train, seed
        self._dp_rank, self._dp_size = dp_rank, dp_size

    def __len__(self) -> int:
        """Steps of the whole run."""
        return self._train.steps

    def __getitem__(self, step: int) -> StepItem:
        """The microbatches of step `step`, from 0."""
        share = step_microbatches(
            len(self._samples), self._seed, step, self._train, self._dp_rank, self._dp_size
        )
        return [stack([self._samples[index] for index in indices]) for indices in share]


class _FromStep(Sampler[int]):
    """Steps `first` and later; as long as the whole run, which Lightning counts against."""

    def __init__(self, first: int, steps: int) -> None:
        self._first, self._steps = first, steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first, self._steps))

    def __len__(self) -> int:
        return self._steps


class _MicrobatchCount(DataSampler):
    """Tells Megatron how many microbatches a step has; the batches themselves come ready cut."""

    dataloader_type = "single"

    def __init__(self, train: Train) -> None:
        self._train = train

    def setup(self, global_rank: int) -> None:
        from nemo.lightning.data import setup_microbatch_calculator

        setup_microbatch_calculator(
            global_rank, self._train.micro_batch_size, self._train.global_batch_size
        )

    def transform_dataloader(
        self, dataloader: DataLoader[Any], consumed_samples: int = 0
    ) -> DataLoader[Any]:
        return dataloader


class PackedDataModule(pl.LightningDataModule):
    """Training batches of a shard folder, resumable to the sample."""

    def __init__(self, samples: PackedDataset, train: Train, seed: int) -> None:
        """Hold the `train` split.

        Raises: DataError if it is empty.
        """
        super().__init__()
        if len(samples) == 0:
            raise DataError("the train split of the shards holds no sample")
        self.samples, self.train, self.seed = samples, train, seed
        self.data_sampler = _MicrobatchCount(train)
        self._first_step = 0

    def train_dataloader(self) -> DataLoader[Any]:
        """One item a step, from the step after the checkpoint's."""
        from megatron.core import parallel_state

        batches = StepBatches(
            self.samples,
            self.train,
            self.seed,
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_data_parallel_world_size(),
        )
        sampler = _FromStep(self._first_step, self.train.steps)
        return DataLoader(batches, batch_size=None, sampler=sampler)

    def state_dict(self) -> dict[str, Any]:
        """How far the run has read."""
        assert self.trainer is not None
        return {"consumed_samples": self.trainer.global_step * self.train.global_batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the samples that the checkpoint has seen."""
        self._first_step = state_dict["consumed_samples"] // self.train.global_batch_size
