"""Finds the numbers of an embedder by trying it on the chats that are shipped.

Three steps, each of them a fit with an answer in closed form or nearly so; the same embedder gives the same numbers.

1. Questions are compared with their evidence and with turns of other chats. How far the two means are apart, measured
   in the variance of the latter, is how much a step of the cosine says. The scale makes it as much as with
   all-MiniLM-L6-v2, so that the meaning of a text has its weight beside the words and everything else; the shift brings
   the mean with other turns to where that model has it. Bringing both means there would give an embedder that tells
   less apart the more weight: with static vectors that costs a point of recall@10 on LoCoMo.
2. Memories of two turns to some six hundred are asked what they answer and what they do not, with everything that
   recall does. How the best value of a question that nothing answers grows with the logarithm of the number of turns
   is a line through them (of n independent values the largest grows so, roughly). What is left of the best value is
   made the probability that the memory answers, where half of the questions have an answer (Platt 1999).
3. The floor is the largest at which few of the questions with an answer lose a correct turn of the first ten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from memlayer.calibration import Calibration
from memlayer.embedding import embed_query, embed_texts
from memlayer.errors import EmbedderError
from memlayer.filters import Condition
from memlayer.index import Entry, UserIndex
from memlayer.questions import read_question
from memlayer.trials import chats, trials

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from memlayer.embedders.protocol import Embedder
    from memlayer.questions import Question
    from memlayer.trials import Chat, Trial

__all__ = ["Figures", "calibrate"]

_K: Final = 10
# Of questions with an answer so many may lose a correct turn. Six in ten of the shipped ones avoid every word of their
# answer on purpose, far more than people's do: of LoCoMo's questions a third as many lose one (docs/decisions/0016).
_MOST_LOST: Final = 0.08
# Less between the two means than this is no difference that could be stretched.
_LEAST_GAP: Final = 0.01
_LEAST_VARIANCE: Final = 1e-6
_ROUNDS: Final = 30
_RIDGE: Final = 1e-9
_LEAST_STEEP: Final = 1.0
_TEXTS_A_STEP: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was found.

    Attributes:
        calibration: the embedder's numbers.
        evidence, other: its mean cosines of a question with its evidence, and with turns of other chats.
        questions: how many questions with an answer were asked; as often in several memories.
        lost: the share of those that lose a correct turn of the first ten at the floor; both kinds of memory, of people
            and of a user with an assistant, count alike.
        foreign: how many questions without an answer were asked.
        silent: the share of those that get nothing at the floor.
    """

    calibration: Calibration
    evidence: float
    other: float
    questions: int
    lost: float
    foreign: int
    silent: float


@dataclass(frozen=True, slots=True)
class _Tried:
    """What came of all questions, one element each.

    Attributes:
        answered: whether something answers it.
        named: whether the memory is of people with names, and not of a user with an assistant.
        turns: the logarithm of how many turns it was asked of.
        top: the best value.
        weakest: the value of the last correct turn among the first ten; nan where none is.
    """

    answered: NDArray[np.bool_]
    named: NDArray[np.bool_]
    turns: NDArray[np.float64]
    top: NDArray[np.float64]
    weakest: NDArray[np.float64]


def calibrate(
    embedder: Embedder,
    *,
    told: Sequence[Chat] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Figures:
    """Finds the numbers of an embedder. Takes a minute or so with a model on this machine.

    Args:
        embedder: any; it embeds some 1,300 short texts.
        told: other chats than those that are shipped.
        progress: called now and then with how much is done, and of how much.

    Raises:
        EmbedderError: it failed; or it finds questions no nearer to their answers than to anything else.
    """
    told = chats() if told is None else told
    tried_on = trials(told)
    vectors = _Vectors(embedder, tried_on, progress=progress)
    spread = _spread(told, vectors)
    if spread.evidence - spread.other < _LEAST_GAP:
        raise EmbedderError(
            "this embedder finds questions no nearer to their answers than to other texts; look whether it is a model "
            "for retrieval, and whether its prompts are the right ones"
        )
    scale = round(spread.weight / _MINILM.weight, 3)
    shift = round(_MINILM.other - scale * spread.other, 3)
    tried = _tried(tried_on, vectors, Calibration(scale=scale, shift=shift, steep=1.0, middle=0.0, growth=0.0))
    alike = _alike(tried.named)
    foreign = ~tried.answered
    slope = _slope(tried.turns[foreign], tried.top[foreign], kinds=tried.named[foreign], weights=alike[foreign])
    growth = Calibration(growth=round(slope, 3)).growth
    top, weakest = tried.top - growth * tried.turns, tried.weakest - growth * tried.turns
    steep, middle = _platt(top, tried.answered, weights=alike)
    found = np.isfinite(weakest)
    least = _quantile(weakest[found], _MOST_LOST, weights=alike[found])
    numbers = Calibration(scale=scale, shift=shift, steep=round(steep, 1), middle=round(middle, 3), growth=growth)
    return Figures(
        calibration=numbers.model_copy(update={"floor": round(numbers.score(least, top=least, turns=1), 3)}),
        evidence=spread.evidence,
        other=spread.other,
        questions=int(found.sum()),
        lost=float(np.average(weakest[found] < least, weights=alike[found])),
        foreign=int(foreign.sum()),
        silent=float(np.average(top[foreign] < least, weights=alike[foreign])),
    )


@dataclass(frozen=True, slots=True)
class _Spread:
    """How the cosines of questions lie.

    Attributes:
        evidence: the mean with a turn that answers it.
        other: the mean with a turn of another chat.
        variance: of the latter around a question's own mean.
    """

    evidence: float
    other: float
    variance: float

    @property
    def weight(self) -> float:
        """How much a step of the cosine says for a turn, in units of the logarithm of odds: of two normal distributions
        with one variance (Fisher's linear discriminant)."""
        return (self.evidence - self.other) / max(self.variance, _LEAST_VARIANCE)


_MINILM: Final = _Spread(0.407661, 0.084154, 0.005801057)


class _Vectors:
    """The vectors of all turns and questions, each embedded once."""

    def __init__(
        self, embedder: Embedder, tried_on: Sequence[Trial], *, progress: Callable[[int, int], None] | None
    ) -> None:
        self.dimensions = embedder.identity.dimensions
        self.turns: dict[str, NDArray[np.float32]] = {}
        self._questions: dict[str, NDArray[np.float32]] = {}
        texts = list(dict.fromkeys(turn.text for trial in tried_on for turn in trial.turns))
        spoken = list(dict.fromkeys(
            read_question(asked.text, speakers=trial.speakers).spoken for trial in tried_on for asked in trial.asked
        ))  # fmt: skip
        total = len(texts) + len(spoken)
        for start in range(0, len(texts), _TEXTS_A_STEP):
            some = texts[start : start + _TEXTS_A_STEP]
            self.turns.update(zip(some, embed_texts(embedder, some), strict=True))
            if progress is not None:
                progress(len(self.turns), total)
        for text in spoken:
            self._questions[text] = embed_query(embedder, text)
            if progress is not None:
                progress(len(self.turns) + len(self._questions), total)

    def of(self, question: Question) -> NDArray[np.float32]:
        """A question's vector."""
        return self._questions[question.spoken]


def _spread(told: Sequence[Chat], vectors: _Vectors) -> _Spread:
    """How an embedder's cosines lie on these chats."""
    matrices = [np.stack([vectors.turns[turn.text][0] for turn in chat.turns]) for chat in told]
    evidence, means, variances = [], [], []
    for place, chat in enumerate(told):
        row = {turn.id: number for number, turn in enumerate(chat.turns)}
        others = np.concatenate([matrix for at, matrix in enumerate(matrices) if at != place])
        for asked in chat.questions:
            query = vectors.of(read_question(asked.text, speakers=chat.persons))
            evidence += [float(matrices[place][row[turn]] @ query) for turn in sorted(asked.evidence)]
            cosines = others @ query
            means.append(float(cosines.mean()))
            variances.append(float(cosines.var()))
    return _Spread(float(np.mean(evidence)), float(np.mean(means)), float(np.mean(variances)))


def _tried(tried_on: Sequence[Trial], vectors: _Vectors, calibration: Calibration) -> _Tried:
    """Asks every question; the values are read back from scores without a middle, whose logits they are."""
    answered, named, turns, tops, weakest = [], [], [], [], []
    for trial in tried_on:
        index = UserIndex(dimensions=vectors.dimensions)
        index.apply(
            [
                Entry(
                    key=number.to_bytes(16), seq=number, stamp=bytes(32), memory=turn, vectors=vectors.turns[turn.text]
                )
                for number, turn in enumerate(trial.turns)
            ],
            removed=(),
        )
        now = max(turn.at for turn in trial.turns)
        for asked in trial.asked:
            question = read_question(asked.text, speakers=index.speakers)
            hits = index.answer(
                question,
                vectors.of(question),
                k=_K,
                condition=Condition(alive_at=now),
                floor=0.0,
                now=now,
                calibration=calibration,
            )
            values = [math.log(hit.score / (1 - hit.score)) / calibration.steep for hit in hits]
            answered.append(bool(asked.evidence))
            named.append(bool(trial.speakers))
            turns.append(math.log(len(trial.turns)))
            tops.append(values[0])
            found = [value for value, hit in zip(values, hits, strict=True) if hit.id in asked.evidence]
            weakest.append(min(found, default=math.nan))
        index.close()
    return _Tried(np.array(answered), np.array(named), np.array(turns), np.array(tops), np.array(weakest))


def _alike(named: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights with which both kinds of memory count alike, however many questions each has."""
    weights: NDArray[np.float64] = np.where(named, 0.5 / max(named.sum(), 1), 0.5 / max((~named).sum(), 1))
    return weights


def _slope(
    x: NDArray[np.float64], y: NDArray[np.float64], *, kinds: NDArray[np.bool_], weights: NDArray[np.float64]
) -> float:
    """Of parallel lines through the points, one for each kind, with the least squares."""
    x, y = x.copy(), y.copy()
    for kind in (kinds, ~kinds):
        if kind.any():
            x[kind] -= x[kind].mean()
            y[kind] -= y[kind].mean()
    return float((weights * x * y).sum() / (weights * x * x).sum())


def _quantile(values: NDArray[np.float64], share: float, *, weights: NDArray[np.float64]) -> float:
    order = np.argsort(values)
    below = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][np.searchsorted(below, share)])


def _platt(
    values: NDArray[np.float64], answered: NDArray[np.bool_], *, weights: NDArray[np.float64]
) -> tuple[float, float]:
    """The logistic curve that gives the answered ones the likeliest probabilities, these and the others counting alike.

    Returns:
        (steep, middle), by Newton's method.
    """
    weights = weights * np.where(answered, 0.5 / weights[answered].sum(), 0.5 / weights[~answered].sum())
    # Each kind is taken to hold one value of the other more than it does (Platt 1999): the curve stays finite where
    # the two are apart.
    targets = np.where(answered, 1 - 1 / (answered.sum() + 2), 1 / ((~answered).sum() + 2))
    inputs = np.stack([values, np.ones_like(values)], axis=1)
    line = np.zeros(2)
    for _ in range(_ROUNDS):
        probabilities = 1 / (1 + np.exp(-np.clip(inputs @ line, -30, 30)))
        slope = inputs.T @ (weights * (targets - probabilities))
        bend = inputs.T @ (inputs * (weights * probabilities * (1 - probabilities))[:, None])
        line += np.linalg.solve(bend + _RIDGE * np.eye(2), slope)
    steep = max(float(line[0]), _LEAST_STEEP)
    return steep, float(-line[1] / steep)
