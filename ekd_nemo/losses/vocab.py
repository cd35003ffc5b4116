"""Which vocabulary ids the rows of one language-model head shard stand for."""

from dataclasses import dataclass

from torch.distributed import ProcessGroup

from ekd_nemo.errors import LayoutError
from ekd_nemo.losses.collectives import group_rank, group_size


class VocabularyMismatchError(LayoutError):
    """Head shards that do not cover the vocabulary, or not the same part of it."""


@dataclass(frozen=True)
class VocabRows:
    """The true ids [start, stop) of one shard; rows of the shard beyond them are padding."""

    start: int
    stop: int

    @property
    def num(self) -> int:
        """Number of true rows; 0 where a shard is padding only."""
        return self.stop - self.start


def vocab_rows(
    who: str,
    num_local_rows: int,
    vocab_size: int,
    offset: int | None,
    group: ProcessGroup | None,
) -> VocabRows:
    """Find the true ids that a shard covers.

    Args:
        who: "student" or "teacher", for the error.
        num_local_rows: rows of this rank's shard, padding included.
        vocab_size: true vocabulary size over all ranks.
        offset: id of the shard's first row; None: equal shards in rank order, as Megatron cuts.
        group: ranks that share the vocabulary.

    Raises:
        VocabularyMismatchError: equal shards that cannot cover the vocabulary, or a bad offset.
    """
    if offset is None:
        if num_local_rows * group_size(group) < vocab_size:
            raise VocabularyMismatchError(
                f"{who} head: {group_size(group)} shards of {num_local_rows} rows cannot hold "
                f"the {vocab_size} ids; accepted: shards that cover them, or a vocab_offset"
            )
        offset = group_rank(group) * num_local_rows
    if offset < 0:
        raise VocabularyMismatchError(f"{who} head: vocab_offset is {offset}; it must be >= 0")
    start = min(offset, vocab_size)
    return VocabRows(start, min(offset + num_local_rows, vocab_size))


def check_same_rows(student: VocabRows, teacher: VocabRows) -> None:
    """Refuse shards of one rank that stand for different ids.

    Raises:
        VocabularyMismatchError: the ids differ.
    """
    if student != teacher and (student.num or teacher.num):
        raise VocabularyMismatchError(
            f"the student's head shard holds ids {student.start}..{student.stop} and the teacher's "
            f"{teacher.start}..{teacher.stop}; both must be cut alike (same tensor-parallel size "
            "and padding)"
        )
