"""Where to cut a text that is longer than a model reads at once. Pure functions over a tokenizer of `tokenizers`.

The parts, put together, are the text. They end after a sentence or a line, else after white space, if one ends within
the last quarter of the window, and between words wherever a word fits the window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenizers import Tokenizer

__all__ = ["split"]

_STOPS: Final = frozenset(".!?…。！？")  # noqa: RUF001 - the full-width ones are meant
_WIDE_STOPS: Final = frozenset("。！？")  # noqa: RUF001 - no space follows these
_CLOSERS: Final = "\"'”’)]»」』）"  # noqa: RUF001 - likewise


def split(text: str, tokenizer: Tokenizer, *, window: int) -> list[str]:
    """The text in parts of at most `window` pieces each; `[text]` where it fits.

    A single character that is more pieces than that (which a byte-level tokenizer may do) stays whole.

    Args:
        text: any text.
        tokenizer: without truncation and padding; it is only read.
        window: how many pieces the model reads, those that the tokenizer adds itself not counted; 1 or more.
    """
    encoding = tokenizer.encode(text, add_special_tokens=False)
    # As lists, once: each access of these properties builds them anew.
    words, offsets = encoding.word_ids, encoding.offsets
    parts = []
    first = position = 0
    while len(words) - first > window:
        first = _cut(text, words, offsets, first=first, last=first + window, slack=window // 4)
        end = offsets[first][0]
        # Of a character that is several pieces, all have the same offset.
        if end > position:
            parts.append(text[position:end])
            position = end
    parts.append(text[position:])
    return [fitting for part in parts for fitting in _fit(part, tokenizer, window)]


def _cut(
    text: str, words: Sequence[int | None], offsets: Sequence[tuple[int, int]], *, first: int, last: int, slack: int
) -> int:
    """The best piece to begin the next part with, after `first` and up to `last`.

    A part may be `slack` pieces shorter than it could be, for the sake of a better place.
    """
    best, best_rank = last, 0
    for piece in range(last, first, -1):
        # Only between words, where the cut does not change how either side is tokenized. A word of WordPiece has at
        # most 100 pieces (longer ones are a single [UNK]); elsewhere a word may fill the window, and is cut.
        if words[piece] != words[piece - 1]:
            rank = _rank(text, offsets[piece - 1][1], offsets[piece][0])
            if rank > best_rank:
                best, best_rank = piece, rank
        if best_rank == 3 or (best_rank and piece <= last - slack):
            break
    return best


def _rank(text: str, end: int, start: int) -> int:
    """How good it is to cut between a word that ends at `end` and the next at `start`: 3 a sentence's or line's end,
    2 white space, 1 any other place between words."""
    # Some tokenizers count the space before a word as part of it.
    while start < len(text) and text[start].isspace():
        start += 1
    gap = text[end:start]
    stop = text[max(0, end - 3) : end].rstrip(_CLOSERS)[-1:]
    if "\n" in gap or stop in _WIDE_STOPS or (gap and stop in _STOPS):
        return 3
    return 2 if gap else 1


def _fit(part: str, tokenizer: Tokenizer, window: int) -> Iterator[str]:
    """The part, halved until it fits. A cut between words should leave nothing to do here; this is the check."""
    if len(part) <= 1 or len(tokenizer.encode(part, add_special_tokens=False).ids) <= window:
        yield part
    else:
        middle = len(part) // 2
        yield from _fit(part[:middle], tokenizer, window)
        yield from _fit(part[middle:], tokenizer, window)
