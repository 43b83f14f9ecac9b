"""How well recall finds what it should, measured on conversations with questions whose evidence is known.

Every conversation is remembered as a user of its own, in a temporary encrypted store; every question is asked of that
user, and the turns that come back are compared with the evidence. Beside it stands exact cosine over the very same
vectors and with the bare question, the order that any memory without a ranking of its own would give. Where there are
several conversations, each is also asked the questions of another one, to which it should answer nothing.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from memlayer.calibration import calibration_of
from memlayer.curves import abstention, reliability
from memlayer.embedders.resolve import resolve
from memlayer.embedding import embed_query, embed_texts
from memlayer.errors import InvalidInputError
from memlayer.evaluation_answers import Answer, best, comparison, grouped, in_order, missed, once, origin, weakest
from memlayer.evaluation_report import Abstentions, Calibrations, Comparison, EvaluationReport, Times
from memlayer.exact_cosine import ExactCosine
from memlayer.guards import guarded, with_foreign
from memlayer.kept_embedder import KeptEmbedder
from memlayer.metrics import scores
from memlayer.ranking import PARTS, checked_parts, score
from memlayer.slices import (
    EVIDENCE_AGES,
    QUESTION_LENGTHS,
    evidence_age,
    prevailing_language,
    question_length,
    written_language,
)
from memlayer.sources import RawKey
from memlayer.store import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray

    from memlayer.embedders.protocol import Embedder
    from memlayer.evaluation_file import Conversation, Question
    from memlayer.guards import Guard
    from memlayer.memory import UserMemory
    from memlayer.ranking import Part

__all__ = ["UNANSWERABLE", "Comparison", "EvaluationReport", "KeptEmbedder", "Times", "compare", "evaluate"]

DEPTH = 50
"""How many turns each question asks for: the largest k that is reported."""

UNANSWERABLE = frozenset({"5"})
"""In LoCoMo, category 5: adversarial questions about things that were never said. Their "evidence" is the turn that
misleads, so finding it is no merit. Files that name their categories with words are not touched by it."""

# As many texts as `embed_texts` gives an embedder at once: fewer would cost speed, more would stop the progress bar.
_TEXTS_A_STEP = 256
# The hits that scores and floors are looked at with: what a recall gives by default.
_FIRST = 10


def evaluate(
    conversations: Sequence[Conversation],
    *,
    embedder: str | Embedder | None = None,
    skip_categories: Collection[str] = UNANSWERABLE,
    without: Collection[Part] = (),
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationReport:
    """One run: remembers the conversations, asks their questions, and scores the answers.

    Args:
        conversations: from `memlayer.evaluation_file.read_conversations`.
        embedder: as for `MemoryStore.open`.
        skip_categories: questions of these are not asked.
        without: parts of the score that are switched off; see `memlayer.ranking`.
        progress: called now and then with how many turns and questions are done, and how many there are.

    Raises:
        InvalidInputError: none of the questions counts.
    """
    [report] = compare(
        conversations,
        embedders=[embedder],
        settings=[without],
        skip_categories=skip_categories,
        progress=progress,
    )
    return report


def compare(
    conversations: Sequence[Conversation],
    *,
    embedders: Sequence[str | Embedder | None] = (None,),
    settings: Sequence[Collection[Part]] = ((),),
    guards: Sequence[Guard] = (),
    skip_categories: Collection[str] = UNANSWERABLE,
    show_texts: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[EvaluationReport]:
    """One run for each embedder and setting, on the conversations as they are and as each guard changes them.

    Each text is embedded once for each embedder, whatever the settings.

    Args:
        conversations, skip_categories, progress: as for `evaluate`.
        embedders: each as `MemoryStore.open` takes it.
        settings: for each the parts of the score that are switched off.
        guards: see `memlayer.guards`.
        show_texts: put the texts of missed questions into the reports.

    Returns:
        The reports: first all on the conversations as they are, then guard by guard; among those embedder by embedder,
        and among those setting by setting.

    Raises:
        InvalidInputError: none of the questions counts.
    """
    off = [checked_parts(without) for without in settings]
    asked = {conversation.id: _asked(conversation, skip_categories) for conversation in conversations}
    kinds = [_Kind(None, with_foreign(conversations, asked=asked), skip_categories)]
    if not kinds[0].asked:
        raise InvalidInputError("none of the questions has evidence and a category that counts")
    kinds += [_Kind(guard, guarded(kinds[0].conversations, guard), skip_categories) for guard in guards]
    resolved = [resolve(embedder) for embedder in embedders]
    advance = _Progress(sum(kind.steps(len(off)) for kind in kinds) * len(resolved), progress)
    reports = []
    for kind in kinds:
        for embedder in resolved:
            run = _Run(kind, KeptEmbedder(embedder), settings=off, advance=advance)
            run.play()
            reports += [run.report(number, show_texts=show_texts) for number in range(len(off))]
    return reports


class _Kind:
    """The conversations as they are, or as a guard changes them."""

    def __init__(self, guard: Guard | None, conversations: Sequence[Conversation], skip: Collection[str]) -> None:
        self.guard = guard
        self.conversations = conversations
        self._skip = skip

    @property
    def asked(self) -> list[Question]:
        """All questions that count."""
        return [question for conversation in self.conversations for question in self.asked_of(conversation)]

    def asked_of(self, conversation: Conversation) -> list[Question]:
        """Those of one conversation."""
        return _asked(conversation, self._skip)

    def steps(self, settings: int) -> int:
        """How many turns are embedded and questions asked."""
        turns = sum(len(conversation.turns) for conversation in self.conversations)
        foreign = sum(len(conversation.foreign) for conversation in self.conversations)
        return turns + settings * (len(self.asked) + foreign)


class _Progress:
    """Counts what is done."""

    def __init__(self, total: int, told: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._told = 0, total, told

    def __call__(self, steps: int) -> None:
        self._done += steps
        if self._told is not None:
            self._told(self._done, self._total)


class _Run:
    """One embedder on one kind of conversations, with every setting. A class because scores and times gather over all
    conversations."""

    def __init__(
        self, kind: _Kind, embedder: KeptEmbedder, *, settings: Sequence[frozenset[str]], advance: _Progress
    ) -> None:
        self._kind = kind
        self._embedder = embedder
        self._settings: list[list[Part]] = [[part for part in PARTS if part in without] for without in settings]
        self._answers: list[list[Answer]] = [[] for _ in settings]
        # The scores of the best hits to foreign questions, and the cosines.
        self._strange: list[list[float]] = [[] for _ in settings]
        self._strange_cosines: list[float] = []
        self._stored = 0
        self._clock = _Clock()
        self._advance = advance

    def play(self) -> None:
        """Remembers all conversations and asks their questions."""
        with self._clock.measure("load"):
            embed_query(self._embedder, "anything")  # Nothing is kept of it but a loaded model.
        with _temporary_store(self._embedder) as store:
            for conversation in self._kind.conversations:
                self._play(conversation, user=store.user(conversation.id))

    def _play(self, conversation: Conversation, *, user: UserMemory) -> None:
        vectors = self._embed([turn.text for turn in conversation.turns])
        self._stored += sum(map(len, vectors))
        with self._clock.measure("remember"):
            user.remember_many(conversation.turns)  # Finds every vector in the embedder, parts included.
        with self._clock.measure("open"):
            user.count()
        exact = ExactCosine([turn.id or "" for turn in conversation.turns], vectors)
        # Questions are asked when the last turn has been said.
        now = max((turn.at for turn in conversation.turns if turn.at is not None), default=None)
        self._ask_all(conversation, user=user, exact=exact, now=now)
        self._ask_foreign(conversation, user=user, exact=exact, now=now)

    def _embed(self, texts: list[str]) -> list[NDArray[np.float32]]:
        vectors = []
        for start in range(0, len(texts), _TEXTS_A_STEP):
            step = texts[start : start + _TEXTS_A_STEP]
            with self._clock.measure("embed"):
                vectors += embed_texts(self._embedder, step)
            self._advance(len(step))
        return vectors

    def _ask_all(
        self, conversation: Conversation, *, user: UserMemory, exact: ExactCosine, now: datetime | None
    ) -> None:
        questions = self._kind.asked_of(conversation)
        said = {origin(turn.id or "", conversation.origins): turn.at for turn in conversation.turns}
        prevailing = prevailing_language(question.text for question in questions)
        for question in questions:
            with self._clock.measure("query"):
                vector = embed_query(self._embedder, question.text)
            nearest = once(exact.nearest(vector, k=DEPTH), conversation.origins)
            for number, without in enumerate(self._settings):
                before = self._embedder.query_seconds
                with self._clock.measure(f"recall {number}", less=lambda: self._embedder.query_seconds - before):  # noqa: B023
                    hits = user.recall(question.text, k=DEPTH, min_score=0, now=now, without=without)
                found = once([(hit.id, hit.score) for hit in hits], conversation.origins)
                self._answers[number].append(
                    Answer(
                        conversation=conversation,
                        question=question,
                        length=question_length(question.text),
                        age=evidence_age([said[turn] for turn in question.evidence], end=now),
                        language=written_language(question.text, prevailing=prevailing),
                        recall=scores([id_ for id_, _ in found], question.evidence),
                        cosine=scores([id_ for id_, _ in nearest], question.evidence),
                        hits=[(fit, id_ in question.evidence) for id_, fit in found[:_FIRST]],
                        cosines=[(score(fit), id_ in question.evidence) for id_, fit in nearest[:_FIRST]],
                        found=[id_ for id_, _ in found[:_FIRST]],
                    )
                )
            self._advance(len(self._settings))

    def _ask_foreign(
        self, conversation: Conversation, *, user: UserMemory, exact: ExactCosine, now: datetime | None
    ) -> None:
        for text in conversation.foreign:
            self._strange_cosines.append(score(exact.nearest(embed_query(self._embedder, text), k=1)[0][1]))
            for number, without in enumerate(self._settings):
                hits = user.recall(text, k=1, min_score=0, now=now, without=without)
                self._strange[number].append(hits[0].score if hits else 0.0)
            self._advance(len(self._settings))

    def report(self, number: int, *, show_texts: bool) -> EvaluationReport:
        """What one of the settings found."""
        answers, conversations = self._answers[number], self._kind.conversations
        questions = [question for conversation in conversations for question in conversation.questions]
        answerable = [question for question in questions if question.evidence]
        identity = self._embedder.identity
        return EvaluationReport(
            embedder=identity.model,
            dimensions=identity.dimensions,
            without=self._settings[number],
            guard=self._kind.guard,
            turns=sum(len(conversation.turns) for conversation in conversations),
            vectors=self._stored,
            embedded=len(self._embedder.vectors),
            without_evidence=len(questions) - len(answerable),
            skipped=len(answerable) - len(answers),
            overall=comparison(answers),
            by_category=grouped(answers, lambda answer: answer.question.category, order=sorted),
            by_conversation=grouped(answers, lambda answer: answer.conversation.id, order=list),
            by_question_length=grouped(answers, lambda answer: answer.length, order=in_order(QUESTION_LENGTHS)),
            by_evidence_age=grouped(answers, lambda answer: answer.age, order=in_order(EVIDENCE_AGES)),
            by_language=grouped(answers, lambda answer: answer.language, order=sorted),
            calibration=Calibrations(
                recall=reliability([hit for answer in answers for hit in answer.hits]),
                cosine=reliability([hit for answer in answers for hit in answer.cosines]),
                answered=reliability(best([answer.hits for answer in answers], self._strange[number])),
                answered_cosine=reliability(best([answer.cosines for answer in answers], self._strange_cosines)),
            ),
            abstention=Abstentions(
                recall=abstention(
                    [weakest(answer.hits) for answer in answers],
                    self._strange[number],
                    default=calibration_of(identity).floor,
                ),
                cosine=abstention([weakest(answer.cosines) for answer in answers], self._strange_cosines, default=None),
            ),
            missed=missed(answers, show_texts=show_texts),
            times=self._times(number),
        )

    def _times(self, number: int) -> Times:
        clock, recall = self._clock, f"recall {number}"
        return Times(
            load_s=clock.total("load"),
            embed_s=clock.total("embed"),
            remember_s=clock.total("remember"),
            open_s=clock.total("open"),
            query_p50_ms=clock.percentile("query", 50) * 1000,
            query_p95_ms=clock.percentile("query", 95) * 1000,
            recall_p50_ms=clock.percentile(recall, 50) * 1000,
            recall_p95_ms=clock.percentile(recall, 95) * 1000,
        )


class _Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self._measured: dict[str, list[float]] = {}

    @contextmanager
    def measure(self, name: str, *, less: Callable[[], float] = float) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._measured.setdefault(name, []).append(time.perf_counter() - start - less())

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


def _asked(conversation: Conversation, skip: Collection[str]) -> list[Question]:
    return [question for question in conversation.questions if question.evidence and question.category not in skip]
