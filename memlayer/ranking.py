"""From what an engine found to what a recall returns. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["best_turns", "score"]


def score(cosine: float) -> float:
    """A cosine as a score, 0 to 1: what points away from the query fits no worse than what is unrelated to it."""
    return min(max(cosine, 0.0), 1.0)


def best_turns(parts: Iterable[tuple[int, float]], *, k: int, floor: float) -> list[tuple[int, float]]:
    """The best `k` turns, each once, with the score of its best part.

    Args:
        parts: (turn, cosine) of the parts of turns, best first; the order of equal ones is kept.
        k: how many at most.
        floor: the least score that counts; 0 keeps everything.

    Returns:
        (turn, score), best first. Turns under 0 all score 0 and keep the order of their cosines.
    """
    best: dict[int, float] = {}
    for turn, cosine in parts:
        if len(best) == k or score(cosine) < floor:
            break
        best.setdefault(turn, score(cosine))
    return list(best.items())
