"""What an evaluation finds, as values that can be written as JSON and drawn (`memlayer.evaluation_page`).

Nothing in here is a text of the conversations, but for `Missed` where that was asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from memlayer.curves import Abstention, Bin
from memlayer.guards import Guard
from memlayer.metrics import Scores
from memlayer.ranking import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Abstentions", "Calibrations", "Comparison", "EvaluationReport", "Missed", "Texts", "Times", "run_names"]


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Comparison(_Report):
    """Both ways of finding on the same questions, on average.

    Attributes:
        questions: how many.
        recall: what `UserMemory.recall` reached.
        cosine: what exact cosine reached.
    """

    questions: int
    recall: Scores
    cosine: Scores


class Times(_Report):
    """How long it took; percentiles are over all questions.

    Attributes:
        load_s: until the embedder was ready.
        embed_s: all turns.
        remember_s: all turns, with their vectors at hand: sealed, written, synced.
        open_s: reading all users back into RAM.
        query_p50_ms, query_p95_ms: embedding one question.
        recall_p50_ms, recall_p95_ms: one recall of 50, without the embedding of its question.
    """

    load_s: float
    embed_s: float
    remember_s: float
    open_s: float
    query_p50_ms: float
    query_p95_ms: float
    recall_p50_ms: float
    recall_p95_ms: float


class Calibrations(_Report):
    """What scores mean; of cosines, those below 0 count as 0.

    Attributes:
        recall, cosine: how often the first ten hits of a question are evidence, by their score.
        answered, answered_cosine: how often a question is one that the store answers, and no foreign one, by the score
            of its best hit.
    """

    recall: list[Bin]
    cosine: list[Bin]
    answered: list[Bin]
    answered_cosine: list[Bin]


class Abstentions(_Report):
    """What floors do to recall's scores, and to cosines."""

    recall: Abstention
    cosine: Abstention


class Texts(_Report):
    """What was said: there only where it was asked for.

    Attributes:
        question: what was asked.
        evidence: the turns that answer it.
        found: the first of what came back.
    """

    question: str
    evidence: list[str]
    found: list[str]


class Missed(_Report):
    """A question to which none of the first ten hits is evidence.

    Attributes:
        conversation, question: their ids in the file.
        category: the question's.
        cosine: whether exact cosine has evidence among its first ten.
        texts: the words; None unless they were asked for.
    """

    conversation: str
    question: str
    category: str
    cosine: bool
    texts: Texts | None


class EvaluationReport(_Report):
    """What one run of an evaluation found: one embedder, one setting, one kind of conversations.

    Attributes:
        embedder: the model's name.
        dimensions: of its vectors.
        without: the parts of the score that were switched off.
        guard: how the conversations were changed; None for those of the file.
        turns: how many were remembered.
        vectors: how many were stored; over `turns` where long turns have several parts.
        embedded: how many texts were embedded; below `vectors` where some stand in several turns.
        without_evidence: questions that were not asked, because nothing is known to answer them.
        skipped: questions that were not asked, because of their category.
        overall: all questions that were asked.
        by_category: by category, sorted.
        by_conversation: by conversation, in the order of the file.
        by_question_length, by_evidence_age, by_language: by what `memlayer.slices` says of a question.
        calibration: what scores mean.
        abstention: what floors do.
        missed: the questions to which recall found nothing, those first that cosine answers.
        times: how long it took.
    """

    embedder: str
    dimensions: int
    without: list[Part]
    guard: Guard | None
    turns: int
    vectors: int
    embedded: int
    without_evidence: int
    skipped: int
    overall: Comparison
    by_category: dict[str, Comparison]
    by_conversation: dict[str, Comparison]
    by_question_length: dict[str, Comparison]
    by_evidence_age: dict[str, Comparison]
    by_language: dict[str, Comparison]
    calibration: Calibrations
    abstention: Abstentions
    missed: list[Missed]
    times: Times

    @property
    def setting(self) -> str:
        """What sets this run apart from others of its embedder, in words."""
        parts = f"without {', '.join(self.without)}" if self.without else "all parts"
        return f"{parts}, {self.guard}" if self.guard else parts


def run_names(reports: Sequence[EvaluationReport]) -> list[str]:
    """A name for each run of one evaluation, the embedder in it where there are several."""
    several = len({(report.embedder, report.dimensions) for report in reports}) > 1
    return [
        f"{report.embedder.rpartition('/')[2]} ({report.dimensions}), {report.setting}" if several else report.setting
        for report in reports
    ]
