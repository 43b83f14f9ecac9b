"""Texts as the arrays that a BERT model reads, and in which order they go through it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["by_length", "padded"]


def by_length(texts: Sequence[str], *, size: int) -> Iterator[list[int]]:
    """The numbers of the texts in batches of at most `size`.

    Texts of like length share a batch, so that little is computed for padding.
    """
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def padded(texts: Sequence[str], tokenizer: Tokenizer, *, longest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One batch: the ids of the pieces, 0 ([PAD]) behind the shorter ones, and 1 wherever there is a piece.

    Args:
        texts: one or more.
        tokenizer: without truncation and padding; it is only read, one text a call, so that no thread pool is left
            behind about which a later fork would print a warning.
        longest: pieces, those that the tokenizer adds included. Of a longer text the beginning is kept, and the last
            piece ([SEP]), as the model was trained to see it.

    Returns:
        Two arrays `(len(texts), pieces of the longest)`.
    """
    import numpy as np

    pieces = [tokenizer.encode(text).ids for text in texts]
    pieces = [ids if len(ids) <= longest else [*ids[: longest - 1], ids[-1]] for ids in pieces]
    input_ids = np.zeros((len(pieces), max(map(len, pieces))), dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for row, ids in enumerate(pieces):
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return input_ids, mask
