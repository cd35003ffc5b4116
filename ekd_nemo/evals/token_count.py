"""Counting tokens of a generation: what the model read and wrote, padding left out."""

from collections.abc import Collection, Sequence


def generated_tokens(row: Sequence[int], ends: Collection[int]) -> int:
    """Tokens that one sequence generated: up to its first end-of-sequence token, which counts, as it was generated.

    What follows is padding of a batch whose other sequences went on, also where padding has the same id.

    Args:
        row: ids behind the prompt.
        ends: every id that ends a sequence; empty where none does.
    """
    return next((number for number, token in enumerate(row, start=1) if token in ends), len(row))


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of one length, padding in front, and their masks: 1 for tokens, 0 for padding."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    masks = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return ids, masks


def cut_stream(rows: Sequence[Sequence[int]], count: int, length: int) -> list[list[int]]:
    """`count` pieces of exactly `length` tokens, cut from the rows one after the other, over again if they run out.

    Raises:
        ValueError: if the rows hold no token.
    """
    stream = [token for row in rows for token in row]
    if not stream:
        raise ValueError("no tokens to cut")
    needed = count * length
    whole = stream * -(-needed // len(stream))
    return [whole[start : start + length] for start in range(0, needed, length)]
