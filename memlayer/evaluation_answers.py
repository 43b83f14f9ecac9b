"""What came back to the questions of an evaluation, and the averages over it. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlayer.evaluation_report import Comparison, Missed, Texts
from memlayer.metrics import Scores, average

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from memlayer.evaluation_file import Conversation, Question

__all__ = ["Answer", "best", "comparison", "grouped", "in_order", "missed", "once", "origin", "weakest"]

_SHOWN_FOUND = 3


@dataclass(frozen=True)
class Answer:
    """What came back to one question.

    Attributes:
        recall, cosine: the scores of both ways.
        hits, cosines: of the first ten the score, and whether it is evidence.
        found: the ids of the first ten.
    """

    conversation: Conversation
    question: Question
    length: str
    age: str
    language: str
    recall: Scores
    cosine: Scores
    hits: list[tuple[float, bool]]
    cosines: list[tuple[float, bool]]
    found: list[str]


def origin(id_: str, origins: Mapping[str, str]) -> str:
    """The id that evidence names a turn by: its own, or that of the turn that it was cut from."""
    return origins.get(id_, id_)


def once(found: Iterable[tuple[str, float]], origins: Mapping[str, str]) -> list[tuple[str, float]]:
    """What evidence names in place of what was cut from it, each at its best place."""
    best: dict[str, float] = {}
    for id_, fit in found:
        best.setdefault(origin(id_, origins), fit)
    return list(best.items())


def best(own: Sequence[Sequence[tuple[float, bool]]], foreign: Sequence[float]) -> list[tuple[float, bool]]:
    """The score of each question's best hit, and whether the question was an own one; of those without hits nothing.

    Args:
        own: for each question that can be answered its hits, best first.
        foreign: for each foreign question the score of its best hit.
    """
    return [(hits[0][0], True) for hits in own if hits] + [(score, False) for score in foreign]


def weakest(hits: Sequence[tuple[float, bool]]) -> float | None:
    """The lowest score of a hit that is evidence; None where none is."""
    return min((fit for fit, right in hits if right), default=None)


def comparison(answers: Sequence[Answer]) -> Comparison:
    """The averages; at least one answer."""
    return Comparison(
        questions=len(answers),
        recall=average([answer.recall for answer in answers]),
        cosine=average([answer.cosine for answer in answers]),
    )


def grouped(
    answers: Sequence[Answer], key: Callable[[Answer], str], *, order: Callable[[Iterable[str]], list[str]]
) -> dict[str, Comparison]:
    """The averages by what `key` says of an answer, in an order of its names."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(key(answer), []).append(answer)
    return {name: comparison(groups[name]) for name in order(groups)}


def in_order(labels: Sequence[str]) -> Callable[[Iterable[str]], list[str]]:
    """Names in the order of these labels."""
    return lambda names: sorted(names, key=labels.index)


def missed(answers: Sequence[Answer], *, show_texts: bool) -> list[Missed]:
    """The questions whose first ten hits hold no evidence, those first where cosine's do."""
    without = [answer for answer in answers if not answer.recall["hit@10"]]
    return [
        Missed(
            conversation=answer.conversation.id,
            question=answer.question.id,
            category=answer.question.category,
            cosine=bool(answer.cosine["hit@10"]),
            texts=_texts(answer) if show_texts else None,
        )
        for answer in sorted(without, key=lambda answer: -answer.cosine["hit@10"])
    ]


def _texts(answer: Answer) -> Texts:
    said: dict[str, str] = {}
    for turn in answer.conversation.turns:
        id_ = origin(turn.id or "", answer.conversation.origins)
        said[id_] = f"{said[id_]} {turn.text}" if id_ in said else turn.text
    return Texts(
        question=answer.question.text,
        evidence=[said[id_] for id_ in said if id_ in answer.question.evidence],
        found=[said[id_] for id_ in answer.found[:_SHOWN_FOUND]],
    )
