"""Measures of a ranking, each for one question. Pure functions.

`found` is always ids of turns, best first, none twice; `evidence` the ids of those that answer the question, at least
one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["METRICS", "Scores", "average", "hit_at", "ndcg_at", "recall_at", "reciprocal_rank", "scores"]

METRICS = ("recall@5", "recall@10", "recall@20", "recall@50", "hit@10", "mrr", "ndcg@10")

Scores: TypeAlias = dict[str, float]
"""A value, 0 to 1, for each of `METRICS`."""


def recall_at(found: Sequence[str], evidence: Collection[str], *, k: int) -> float:
    """The share of the evidence that is among the first `k` found."""
    return len(set(found[:k]) & set(evidence)) / len(evidence)


def hit_at(found: Sequence[str], evidence: Collection[str], *, k: int) -> float:
    """1 if any of the evidence is among the first `k` found, else 0."""
    return float(any(turn in evidence for turn in found[:k]))


def reciprocal_rank(found: Sequence[str], evidence: Collection[str]) -> float:
    """1 / the place of the first evidence that was found, counted from 1; 0 where none was."""
    return next((1 / place for place, turn in enumerate(found, start=1) if turn in evidence), 0.0)


def ndcg_at(found: Sequence[str], evidence: Collection[str], *, k: int) -> float:
    """The discounted gain of the first `k` found (1 / log2(place + 1) for each evidence), as a share of the best."""
    gain = sum(_discount(place) for place, turn in enumerate(found[:k]) if turn in evidence)
    return gain / sum(_discount(place) for place in range(min(k, len(evidence))))


def scores(found: Sequence[str], evidence: Collection[str]) -> Scores:
    """All metrics of one question."""
    if not evidence:
        raise InvalidInputError("a question without evidence cannot be scored")
    values = [recall_at(found, evidence, k=k) for k in (5, 10, 20, 50)]
    values += [hit_at(found, evidence, k=10), reciprocal_rank(found, evidence), ndcg_at(found, evidence, k=10)]
    return dict(zip(METRICS, values, strict=True))


def average(questions: Sequence[Scores]) -> Scores:
    """The mean over questions, each counting the same."""
    return {name: sum(each[name] for each in questions) / len(questions) for name in METRICS}


def _discount(place: int) -> float:
    return 1 / math.log2(place + 2)
