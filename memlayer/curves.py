"""What scores mean and what a floor does, from what was found. Pure functions.

A score that means something has two properties, and each is a curve. Calibration: of hits with a score of .7, more are
right than of hits with .3. Abstention: there is a floor under which foreign questions (to which the store has no
answer) find nothing, and hardly a right hit is lost.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ACCEPTED_LOSS", "Abstention", "Bin", "Floor", "abstention", "reliability"]

_BINS: Final = 10
_STEPS: Final = 100
ACCEPTED_LOSS: Final = 0.05
"""Of the questions that can be answered, the share that may lose a hit to a floor."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bin(_Value):
    """The hits whose scores are alike.

    Attributes:
        low, high: of the scores, `low <= score < high`, and 1 with the last.
        hits: how many there are.
        score: their mean score; None where there are none.
        evidence: how many of them are evidence (of questions: how many are own ones), as a share; None where there are
            none.
    """

    low: float
    high: float
    hits: int
    score: float | None
    evidence: float | None


class Floor(_Value):
    """What a floor does.

    Attributes:
        floor: hits with a lower score are left out.
        lost: of the questions that can be answered, the share that loses evidence which stood among its first ten.
        silent: of the foreign questions, the share that finds nothing; None where none was asked.
    """

    floor: float
    lost: float
    silent: float | None


class Abstention(_Value):
    """What floors do.

    Attributes:
        questions: how many could be answered.
        foreign: how many were asked that could not.
        default: the floor that counts where the caller names none; None where there is no such thing.
        accepted: the highest floor at which no more is lost than `ACCEPTED_LOSS`.
        curve: floors from 0 to 1.
    """

    questions: int
    foreign: int
    default: Floor | None
    accepted: Floor
    curve: list[Floor]


def reliability(hits: Sequence[tuple[float, bool]]) -> list[Bin]:
    """Hits by their score, in ten bins of one width.

    Args:
        hits: (score, whether it is evidence).
    """
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(_BINS)]
    for score, right in hits:
        bins[min(int(score * _BINS), _BINS - 1)].append((score, right))
    return [
        Bin(
            low=number / _BINS,
            high=(number + 1) / _BINS,
            hits=len(those),
            score=sum(score for score, _ in those) / len(those) if those else None,
            evidence=sum(right for _, right in those) / len(those) if those else None,
        )
        for number, those in enumerate(bins)
    ]


def abstention(weakest: Sequence[float | None], foreign: Sequence[float], *, default: float | None) -> Abstention:
    """What floors do.

    Args:
        weakest: for each question that can be answered the lowest score of the evidence among its first ten hits; None
            where there is no evidence, and so nothing to lose.
        foreign: for each foreign question the score of its best hit, 0 where there is none.
        default: the default floor.
    """
    right = sorted(score for score in weakest if score is not None)
    wrong = sorted(foreign)

    def floor(at: float) -> Floor:
        return Floor(
            floor=at,
            lost=bisect_left(right, at) / len(weakest),
            silent=bisect_left(wrong, at) / len(wrong) if wrong else None,
        )

    # So many right hits may be lost; the floor may then stand as high as the next one's score.
    spare = int(ACCEPTED_LOSS * len(weakest))
    return Abstention(
        questions=len(weakest),
        foreign=len(wrong),
        default=None if default is None else floor(default),
        accepted=floor(right[spare] if spare < len(right) else 1.0),
        curve=[floor(step / _STEPS) for step in range(_STEPS + 1)],
    )
