"""From raw scores to an order. Pure functions on arrays with one element a turn, by the turn's row.

A turn's value is a sum of parts, each in the units of a cosine, none of them normalised by the question: so values of
two questions compare, and `calibrated` makes a score of one, given among how many turns it was looked for.

The constants are the same for every user and every question. They were chosen on six conversations of LoCoMo and kept
only where they cost little on the other four, on turns joined to long ones, cut, renamed, scattered over sessions and
without speakers, and in Chinese (docs/decisions/0012).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

import numpy as np

from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from numpy.typing import NDArray

    from memlayer.timeline import Rows

__all__ = [
    "ALIKE", "ALIKE_UNKNOWN", "DISTANCES", "LEXICAL_NEIGHBOURS", "PARTS", "VECTOR_NEIGHBOURS", "Beside", "Floats",
    "Part", "beside", "best_turns", "calibrated", "checked_parts", "in_context", "length_prior", "part_penalty",
    "picked", "pooled", "score", "session_part", "shortness", "weigh",
]  # fmt: skip

Floats: TypeAlias = "NDArray[np.float32]"
Part: TypeAlias = Literal[
    "vector",
    "lexical",
    "context",
    "speaker",
    "role",
    "length",
    "time",
    "session",
    "duplicates",
    "diversity",
    "reranker",
]
"""What can be switched off by name: the leg that compares meanings; the leg that compares words; what both legs take
from a turn's neighbours; whether the turn is of somebody whom the question names; that it is an assistant's; how much
it says; whether it is of the time that the question names; how well the rest of its conversation fits; that equal texts
are one hit; that hits which say the same make room for others; and the second stage, where the store has one."""

PARTS: Final[tuple[Part, ...]] = get_args(Part)

# A turn of up to 300 characters leans on its neighbours, one of 900 and more on none: it says what it is about.
_SHORT, _LONG = 300, 900
# How far a neighbour's weight depends on its being short too: a long one is about many things.
_SHORT_NEIGHBOUR = 0.5
# A neighbour of fewer characters says little of what it is about: "Noted." beside every turn would only dilute them.
_SAYS_SOMETHING = 60
VECTOR_NEIGHBOURS: Final[Mapping[int, float]] = {-1: 0.25, 1: 0.25, -2: 0.1, 2: 0.1}
LEXICAL_NEIGHBOURS: Final[Mapping[int, float]] = {-1: 0.4, 1: 0.3, -2: 0.2, 2: 0.1}
DISTANCES: Final = (1, -1, 2, -2)
# A text of many parts draws many tickets, and the best of them is high by luck.
_A_PART = 0.08
_LEXICAL = 0.05
# An embedder that does not know the question's language still knows names and numbers in it.
_UNKNOWN_LANGUAGE = 0.2
_ANOTHER_SPEAKER = 0.2
# What is asked for later is mostly what the user said.
_ASSISTANT = 0.1
# A turn of three words is near to everything and answers nothing.
_LENGTH, _MIDDLE_LENGTH, _LONGEST = 0.04, 12, 60
_TIME = 0.2
_SESSION = 0.15

# Cosines from which on two texts say the same; in a language that the embedder does not know, most do.
ALIKE, ALIKE_UNKNOWN = 0.93, 0.985
_ALIKE = 0.05
_TOOL = 0.05
_VARIED = 100


def checked_parts(without: Collection[str]) -> frozenset[str]:
    """The parts that are switched off.

    Raises:
        InvalidInputError: one is no part.
    """
    if isinstance(without, str) or not set(without) <= set(PARTS):
        raise InvalidInputError(f"without takes names of parts: {', '.join(PARTS)}")
    return frozenset(without)


def shortness(widths: NDArray[np.int32]) -> Floats:
    """How far a turn needs its context, 0 to 1, by its width in characters."""
    return np.clip((_LONG - widths) / np.float32(_LONG - _SHORT), 0, 1).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What stands next to each turn and what it counts: made once for all questions.

    Attributes:
        rows: shape (distances, turns): the row of each turn's neighbour; one behind the last where there is none.
        vectors: of the same shape: what that neighbour's cosine counts beside the turn's own.
        whole: by row: what the turn's own cosine and its neighbours' count together.
        words: shape (distances, turns): what this turn's words count in that neighbour.
    """

    rows: Rows
    vectors: Floats
    whole: Floats
    words: Floats

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.rows.nbytes + self.vectors.nbytes + self.whole.nbytes + self.words.nbytes


def beside(widths: NDArray[np.int32], neighbours: Mapping[int, Rows]) -> Beside:
    """Weighs the turns' neighbours.

    Args:
        widths: how long each turn is, by row.
        neighbours: by distance, for each of `DISTANCES`: the row of each turn's neighbour, -1 where there is none.
    """
    none = len(widths)
    short = np.append(shortness(widths), np.float32(0))
    rows = {distance: np.where(found < 0, none, found).astype(np.int32) for distance, found in neighbours.items()}
    needs = {}
    for distance, found in rows.items():
        need = short[:-1] * (np.float32(1 - _SHORT_NEIGHBOUR) + np.float32(_SHORT_NEIGHBOUR) * short[found])
        needs[distance] = np.append(np.where(found == none, np.float32(0), need), np.float32(0)).astype(np.float32)
    says = np.append(np.minimum(widths / np.float32(_SAYS_SOMETHING), 1), np.float32(0)).astype(np.float32)
    vectors = np.stack(
        [
            np.float32(VECTOR_NEIGHBOURS[distance]) * needs[distance][:-1] * says[rows[distance]]
            for distance in DISTANCES
        ]
    )
    whole = np.ones(none, dtype=np.float32)
    for weights in vectors:
        whole += weights
    # To the neighbour at a distance, this turn stands at the opposite one.
    words = [np.float32(LEXICAL_NEIGHBOURS[-distance]) * needs[-distance][rows[distance]] for distance in DISTANCES]
    return Beside(
        rows=np.stack([rows[distance] for distance in DISTANCES]), vectors=vectors, whole=whole, words=np.stack(words)
    )


def part_penalty(parts: NDArray[np.int32]) -> Floats:
    """What the best of so many parts is better by than one."""
    return (_A_PART * np.log(np.maximum(parts, 1))).astype(np.float32)


def in_context(own: Floats, *, beside: Beside) -> Floats:
    """A turn's cosine in its context: the weighted mean of its own and its neighbours'."""
    padded = np.append(own, np.float32(0))
    top = own.copy()
    for rows, weights in zip(beside.rows, beside.vectors, strict=True):
        top += weights * padded.take(rows)
    return top / beside.whole


def length_prior(words: Floats) -> Floats:
    """How much a turn says, by its number of words."""
    return np.float32(_LENGTH) * np.log((np.minimum(words, _LONGEST) + 1) / np.float32(_MIDDLE_LENGTH))


def weigh(
    *,
    vector: Floats | None,
    knows_language: bool,
    lexical: Floats | None,
    others: NDArray[np.bool_] | None,
    assistant: NDArray[np.bool_] | None,
    words: Floats | None,
    in_time: NDArray[np.bool_] | None,
) -> dict[Part, Floats]:
    """The parts of the turns' values, to be added up; what is None is switched off or has nothing to say.

    Args:
        vector: cosines, in context.
        knows_language: whether the embedder knows the question's language.
        lexical: scores of the lexical leg.
        others: which turns are of others than whom the question names.
        assistant: which are the assistant's, where there is a user too.
        words: how many words each has.
        in_time: which are of the time that the question names.
    """
    parts: dict[Part, Floats] = {}
    if vector is not None:
        parts["vector"] = vector if knows_language else vector * np.float32(_UNKNOWN_LANGUAGE)
    if lexical is not None:
        parts["lexical"] = lexical * np.float32(_LEXICAL)
    if others is not None:
        parts["speaker"] = others * np.float32(-_ANOTHER_SPEAKER)
    if assistant is not None:
        parts["role"] = assistant * np.float32(-_ASSISTANT)
    if words is not None:
        parts["length"] = length_prior(words) * np.float32(1 if knows_language else _UNKNOWN_LANGUAGE)
    if in_time is not None:
        parts["time"] = in_time * np.float32(_TIME)
    return parts


def session_part(values: Floats, sessions: NDArray[np.int32]) -> Floats:
    """What a turn takes from the best turn of its conversation: 0 in the best conversation, less in others."""
    best = np.full(int(sessions.max(initial=0)) + 1, -np.inf, dtype=np.float32)
    np.maximum.at(best, sessions, values)
    top = best.max()
    least = np.float32(-1)  # a conversation none of whose turns may be found
    return np.float32(_SESSION) * np.maximum(best - top, least)[sessions] if np.isfinite(top) else np.zeros_like(values)


def pooled(values: Floats, rows: Rows, *, most: int) -> Rows:
    """The rows of the `most` best, best first, of equal ones the earlier."""
    if len(rows) > most:
        kept = np.argpartition(-values[rows], most - 1)[:most]
        # All that tie with the last one, of which the earliest are kept.
        rows = np.sort(rows[values[rows] >= values[rows[kept]].min()])
    return rows[np.argsort(-values[rows], kind="stable")][:most]


def picked(
    values: Floats, *, alike: Callable[[int], NDArray[np.bool_]] | None, tools: NDArray[np.bool_], k: int
) -> list[tuple[int, float]]:
    """The `k` best places, one after the other: each pick takes a little from those that say the same, more each time,
    and each pick of a tool's from the tools'. So that many copies of one text, or one tool, never fill the answer.

    After a hundred picks the rest come as they stand: nobody reads them for variety, and each look at thousands of
    others takes its time.

    Args:
        values: best first.
        alike: gives, for a place, which places say the same; None where that does not matter.
        tools: which were written by a tool.

    Returns:
        (place, its value when it was picked).
    """
    left = values.astype(np.float64)
    varied = 0 if alike is None else min(k, len(values), _VARIED)
    any_tool = bool(tools.any())
    off = np.where(tools, _ALIKE + _TOOL, _ALIKE)
    times = np.zeros(len(values))
    found = []
    for _ in range(varied):
        best = int(left.argmax())
        found.append((best, float(left[best])))
        left[best] = -np.inf
        same = alike(best) if alike is not None else tools[:0]
        same[best] = False
        if same.any():
            times[same] += 1
            left[same] -= (off * times)[same]
        if any_tool and tools[best]:
            left[tools] -= _TOOL
    rest = np.argsort(-left, kind="stable")[: min(k, len(values)) - varied]
    return found + list(zip(rest.tolist(), left[rest].tolist(), strict=True))


def calibrated(value: float, *, top: float, steep: float, middle: float) -> float:
    """A value as a score, 0 to 1.

    Whether anything in the store answers a question shows best in the best value; how a turn compares to the best one,
    in its own. Both count, so the best turn vouches for those close behind it, but only so far: what has nothing to do
    with a question scores low beside a perfect answer too. The curve is Platt's (Platt 1999).
    """
    exponent = steep * (min(_MIX * top + (1 - _MIX) * value, value + _VOUCHED) - middle)
    return 1 / (1 + math.exp(-min(max(exponent, -30.0), 30.0)))


_MIX, _VOUCHED = 0.7, 0.15


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
