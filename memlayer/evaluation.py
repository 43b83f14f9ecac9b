"""How well recall finds what it should, measured on conversations with questions whose evidence is known.

Every conversation is remembered as a user of its own, in a temporary encrypted store; every question is asked of that
user, and the turns that come back are compared with the evidence. Beside it stands exact cosine over the very same
vectors and with the bare question, the order that any memory without a ranking of its own would give.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from memlayer.embedders.resolve import resolve
from memlayer.embedding import embed_query, embed_texts
from memlayer.errors import InvalidInputError
from memlayer.metrics import Scores, average, scores
from memlayer.sources import RawKey
from memlayer.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    from memlayer.embedders.protocol import Embedder, EmbedderIdentity
    from memlayer.evaluation_file import Conversation, Question
    from memlayer.memory import UserMemory
    from memlayer.ranking import Part

__all__ = ["UNANSWERABLE", "Comparison", "EvaluationReport", "KeptEmbedder", "Times", "evaluate"]

DEPTH = 50
"""How many turns each question asks for: the largest k that is reported."""

UNANSWERABLE = frozenset({"5"})
"""In LoCoMo, category 5: adversarial questions about things that were never said. Their "evidence" is the turn that
misleads, so finding it is no merit. Files that name their categories with words are not touched by it."""

# As many texts as `embed_texts` gives an embedder at once: fewer would cost speed, more would stop the progress bar.
_TEXTS_A_STEP = 256

# --- The report ---


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


class EvaluationReport(_Report):
    """What an evaluation found.

    Attributes:
        turns: how many were remembered.
        vectors: how many were stored; over `turns` where long turns have several parts.
        embedded: how many texts were embedded; below `vectors` where some stand in several turns.
        without_evidence: questions that were not asked, because nothing is known to answer them.
        skipped: questions that were not asked, because of their category.
        overall: all questions that were asked.
        by_category: by category, sorted.
        by_conversation: by conversation, in the order of the file.
        times: how long it took.
    """

    turns: int
    vectors: int
    embedded: int
    without_evidence: int
    skipped: int
    overall: Comparison
    by_category: dict[str, Comparison]
    by_conversation: dict[str, Comparison]
    times: Times


# --- The run ---


class KeptEmbedder:
    """An embedder that keeps every vector it computed, and computes none twice.

    For looking at what a store was given: the vectors that `remember` seals are these, to the bit.

    Attributes:
        vectors: by text, or by part of a text where it was split.
        query_seconds: how long all queries have taken so far.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.vectors: dict[str, NDArray[np.float32]] = {}
        self._queries: dict[str, NDArray[np.float32]] = {}
        self.query_seconds = 0.0

    @property
    def identity(self) -> EmbedderIdentity:
        """The embedder's own."""
        return self._embedder.identity

    def split(self, text: str) -> list[str]:
        """As the embedder does; whole where it does not."""
        split = getattr(self._embedder, "split", None)
        return [text] if split is None else list(split(text))

    def embed_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row a text; only those that were never embedded reach the embedder."""
        import numpy as np

        new = list(dict.fromkeys(text for text in texts if text not in self.vectors))
        if new:
            self.vectors.update(zip(new, np.asarray(self._embedder.embed_documents(new)), strict=True))
        return np.stack([self.vectors[text] for text in texts])

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """In the query role; its vector is never stored."""
        if text not in self._queries:
            start = time.perf_counter()
            self._queries[text] = self._embedder.embed_query(text)
            self.query_seconds += time.perf_counter() - start
        return self._queries[text]


def evaluate(
    conversations: Sequence[Conversation],
    *,
    embedder: str | Embedder | None = None,
    skip_categories: Collection[str] = UNANSWERABLE,
    without: Collection[Part] = (),
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """Remembers the conversations, asks their questions, and scores the answers.

    Args:
        conversations: from `memlayer.evaluation_file.read_conversations`.
        embedder: as for `MemoryStore.open`.
        skip_categories: questions of these are not asked.
        without: parts of the score that are switched off; see `memlayer.ranking`.
        progress: called now and then with how many turns and questions are done, and how many there are.

    Raises:
        InvalidInputError: none of the questions counts.
    """
    asked = {conversation.id: _asked(conversation, skip_categories) for conversation in conversations}
    if not any(asked.values()):
        raise InvalidInputError("none of the questions has evidence and a category that counts")
    run = _Run(KeptEmbedder(resolve(embedder)), without=without, total=_steps(conversations, asked), progress=progress)
    with _temporary_store(run.embedder) as store:
        for conversation in conversations:
            run.play(conversation, asked[conversation.id], user=store.user(conversation.id))
    questions = [question for conversation in conversations for question in conversation.questions]
    answerable = [question for question in questions if question.evidence]
    return EvaluationReport(
        turns=sum(len(conversation.turns) for conversation in conversations),
        vectors=run.stored,
        embedded=len(run.embedder.vectors),
        without_evidence=len(questions) - len(answerable),
        skipped=len(answerable) - len(run.answers),
        overall=run.comparison(run.answers),
        by_category=run.grouped(lambda answer: answer.category, sort=True),
        by_conversation=run.grouped(lambda answer: answer.conversation, sort=False),
        times=run.times(),
    )


class _Answer(BaseModel):
    """The scores of one question."""

    conversation: str
    category: str
    recall: Scores
    cosine: Scores


class _Run:
    """One evaluation under way. A class because scores and times gather over all conversations."""

    def __init__(
        self,
        embedder: KeptEmbedder,
        *,
        without: Collection[Part],
        total: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.embedder = embedder
        self._without = without
        self._now: datetime | None = None
        self.answers: list[_Answer] = []
        self.stored = 0
        self._clock = _Clock()
        self._done, self._total, self._progress = 0, total, progress
        with self._clock.measure("load"):
            embed_query(embedder, "anything")  # Nothing is kept of it but a loaded model.

    def play(self, conversation: Conversation, questions: Sequence[Question], *, user: UserMemory) -> None:
        """Remembers one conversation and asks its questions."""
        vectors = self._embed([turn.text for turn in conversation.turns])
        # Questions are asked when the last turn has been said.
        self._now = max((turn.at for turn in conversation.turns if turn.at is not None), default=None)
        self.stored += sum(map(len, vectors))
        with self._clock.measure("remember"):
            user.remember_many(conversation.turns)  # Finds every vector in the embedder, parts included.
        with self._clock.measure("open"):
            user.count()
        exact = _ExactCosine([turn.id or "" for turn in conversation.turns], vectors)
        for question in questions:
            self.answers.append(self._ask(question, user=user, exact=exact, conversation=conversation.id))
            self._advance(1)

    def _embed(self, texts: list[str]) -> list[NDArray[np.float32]]:
        vectors = []
        for start in range(0, len(texts), _TEXTS_A_STEP):
            step = texts[start : start + _TEXTS_A_STEP]
            with self._clock.measure("embed"):
                vectors += embed_texts(self.embedder, step)
            self._advance(len(step))
        return vectors

    def _ask(self, question: Question, *, user: UserMemory, exact: _ExactCosine, conversation: str) -> _Answer:
        with self._clock.measure("query"):
            vector = embed_query(self.embedder, question.text)
        before = self.embedder.query_seconds
        with self._clock.measure("recall", less=lambda: self.embedder.query_seconds - before):
            hits = user.recall(question.text, k=DEPTH, min_score=0, now=self._now, without=self._without)
        return _Answer(
            conversation=conversation,
            category=question.category,
            recall=scores([hit.id for hit in hits], question.evidence),
            cosine=scores(exact.nearest(vector), question.evidence),
        )

    def _advance(self, steps: int) -> None:
        self._done += steps
        if self._progress is not None:
            self._progress(self._done, self._total)

    def comparison(self, answers: Sequence[_Answer]) -> Comparison:
        """The averages over some of the answers."""
        return Comparison(
            questions=len(answers),
            recall=average([answer.recall for answer in answers]),
            cosine=average([answer.cosine for answer in answers]),
        )

    def grouped(self, key: Callable[[_Answer], str], *, sort: bool) -> dict[str, Comparison]:
        """The averages by what `key` says of an answer."""
        groups: dict[str, list[_Answer]] = {}
        for answer in self.answers:
            groups.setdefault(key(answer), []).append(answer)
        names = sorted(groups) if sort else list(groups)
        return {name: self.comparison(groups[name]) for name in names}

    def times(self) -> Times:
        """What the clock says."""
        clock = self._clock
        return Times(
            load_s=clock.total("load"),
            embed_s=clock.total("embed"),
            remember_s=clock.total("remember"),
            open_s=clock.total("open"),
            query_p50_ms=clock.percentile("query", 50) * 1000,
            query_p95_ms=clock.percentile("query", 95) * 1000,
            recall_p50_ms=clock.percentile("recall", 50) * 1000,
            recall_p95_ms=clock.percentile("recall", 95) * 1000,
        )


class _ExactCosine:
    """The baseline: all turns by the cosine of their best part, of equal ones the earlier first."""

    def __init__(self, ids: Sequence[str], vectors: Sequence[NDArray[np.float32]]) -> None:
        import numpy as np

        self._ids = ids
        self._matrix = np.concatenate(vectors).astype(np.float64)
        parts = np.array([len(own) for own in vectors])
        self._firsts = np.cumsum(parts) - parts

    def nearest(self, query: NDArray[np.float32]) -> list[str]:
        """The ids of the `DEPTH` best, best first."""
        import numpy as np

        # Not a matrix product: a sum along the row depends on the row alone, so equal vectors tie exactly.
        cosines = (self._matrix * query).sum(axis=1)
        best = np.maximum.reduceat(cosines, self._firsts)
        return [self._ids[turn] for turn in np.argsort(-best, kind="stable")[:DEPTH]]


class _Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self._measured: dict[str, list[float]] = {}

    @contextmanager
    def measure(self, name: str, *, less: Callable[[], float] = float) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.note(name, time.perf_counter() - start - less())

    def note(self, name: str, seconds: float) -> None:
        self._measured.setdefault(name, []).append(seconds)

    def total(self, name: str) -> float:
        return sum(self._measured.get(name, []))

    def percentile(self, name: str, percent: int) -> float:
        import numpy as np

        return float(np.percentile(self._measured[name], percent))


@contextmanager
def _temporary_store(embedder: Embedder) -> Iterator[MemoryStore]:
    """An encrypted store that nobody can open again; nothing of it stays, the rollback guard's note included."""
    from memlayer.guard import forget_path, state_folder

    with tempfile.TemporaryDirectory(prefix="memlayer-eval-") as folder:
        path = Path(folder).resolve() / "eval.db"
        try:
            with MemoryStore.open(path, keys=RawKey.generate(), embedder=embedder) as store:
                yield store
        finally:
            forget_path(state_folder(), path)


def _asked(conversation: Conversation, skip_categories: Collection[str]) -> list[Question]:
    return [
        question
        for question in conversation.questions
        if question.evidence and question.category not in skip_categories
    ]


def _steps(conversations: Sequence[Conversation], asked: dict[str, list[Question]]) -> int:
    return sum(len(conversation.turns) + len(asked[conversation.id]) for conversation in conversations)
