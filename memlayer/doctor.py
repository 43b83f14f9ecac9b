"""Looks at one user's own store and says in words what is wrong with retrieval. Reads only, and calls no LLM.

A bad embedder, a wrong prompt or a half import raises no error: recall then finds less, and nobody is told. What can be
told from the turns and vectors alone is in `memlayer.symptoms`; here the store is read, a few of its texts are embedded
again, and questions are asked.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from memlayer import symptoms
from memlayer.calibration import calibration_of
from memlayer.embedding import embed_query, embed_texts
from memlayer.symptoms import Chart, Finding, Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from memlayer.embedders.protocol import Embedder
    from memlayer.memory import UserMemory
    from memlayer.records import Memory

__all__ = ["Diagnosis", "Unanswered", "diagnose"]

# Enough to tell how vectors lie, and few enough for all pairs.
_SAMPLE: Final = 1_500
# Texts that are embedded again, in both roles.
_AGAIN: Final = 12
_OWN_QUESTIONS: Final = 30
# Before so many turns, a question about the past has no past.
_PAST: Final = 20
_MANY: Final = 0.5
_LEAST_QUESTIONS: Final = 5
# No embedder in use reads less.
_LONG: Final = 400
# Equal but for what arithmetic does in another order, as cosines.
_EQUAL: Final = 1 - 1e-5
# Equal but for the precision that vectors are stored in.
_OWN: Final = 0.98
_CLEARLY: Final = 0.01
_FILLER: Final = "The harbour was quiet and seven green boats lay at the old pier. "


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Unanswered(_Value):
    """A question that found nothing.

    Attributes:
        where: the id of the turn that asked it, or the place in the list that was given, from 1.
        text: the question; None unless texts were asked for.
    """

    where: str
    text: str | None


class Diagnosis(_Value):
    """What an examination found.

    Attributes:
        memories: how many were looked at.
        embedder: the model's name.
        dimensions: of its vectors.
        floor: the score below which nothing is returned.
        shape: how the vectors lie; None where there are too few to say.
        asked: how many questions were asked.
        unanswered: those that found nothing.
        findings: what is wrong; empty where nothing is.
    """

    memories: int
    embedder: str
    dimensions: int
    floor: float
    shape: Shape | None
    asked: int
    unanswered: list[Unanswered]
    findings: list[Finding]


def diagnose(memory: UserMemory, *, questions: Sequence[str] | None = None, show_texts: bool = False) -> Diagnosis:
    """Examines what a user's store has.

    Some thirty texts are embedded, more where questions are given; nothing is written.

    Args:
        memory: the user's.
        questions: what is asked of it; None takes the last turns of the user's that are questions, each asked of what
            was remembered before it.
        show_texts: put the questions that found nothing into the result.

    Raises:
        EmbedderMismatchError: the user's vectors are of another embedder.
        EmbedderError: the embedder failed.
        StoreDamagedError: the rows are not those that were written.
    """
    chart, embedder = _read(memory)
    identity, floor = memory._spaces.own.identity, 0.0
    findings: list[Finding | None] = []
    found_shape, unanswered, asked = None, list[Unanswered](), 0
    if embedder is not None and chart.memories:
        identity = embedder.identity
        floor = calibration_of(identity).floor
        languages = getattr(embedder, "languages", None)
        found_shape = symptoms.shape(chart)
        asked, unanswered = _ask(memory, chart.memories, questions, show_texts=show_texts)
        findings = [
            _truncated(chart.memories, embedder),
            symptoms.collapsed(found_shape, dimensions=identity.dimensions),
            *_roles(chart, embedder),
            symptoms.copies(chart),
            symptoms.near_copies(chart, knows_all_languages=languages is None),
            symptoms.few_words(chart),
            symptoms.strange_languages(chart, languages=languages, model=identity.model),
            _unanswered(len(unanswered), asked, given=questions is not None),
            symptoms.uncalibrated(identity, floor=floor, total=len(chart.memories)),
            symptoms.one_source(chart),
            symptoms.no_sessions(chart),
            symptoms.no_speakers(chart),
            symptoms.one_time(chart),
        ]
    return Diagnosis(
        memories=len(chart.memories),
        embedder=identity.model,
        dimensions=identity.dimensions,
        floor=floor,
        shape=found_shape,
        asked=asked,
        unanswered=unanswered,
        findings=[finding for finding in findings if finding is not None],
    )


def _read(memory: UserMemory) -> tuple[Chart, Embedder | None]:
    """All memories that are alive, and vectors of some; from authenticated rows, as an export reads them."""
    now = datetime.now(UTC)
    memories: list[Memory] = []
    vectors: dict[int, NDArray[np.float32]] = {}
    embedder = None
    with memory._database.read() as connection:
        user = memory._vault.unlock(connection, memory._user_id)
        if user is not None:
            embedder = memory._spaces.of(user)
            step = -(-user.manifest.records // _SAMPLE)
            for number, record in enumerate(memory._vault.stream(connection, user)):
                if record.memory.expires is not None and record.memory.expires <= now:
                    continue
                if number % step == 0 and len(record.vectors) > record.pictures:
                    vectors[len(memories)] = record.vectors[0]
                memories.append(record.memory)
    matrix = np.stack(list(vectors.values())) if vectors else np.empty((0, 0), np.float32)
    return Chart(memories=memories, sample=list(vectors), vectors=matrix), embedder


def _truncated(memories: Sequence[Memory], embedder: Embedder) -> Finding | None:
    """Texts whose end the embedder never sees: found by changing the end, which must change the vector."""

    def one(text: str) -> NDArray[np.float32] | None:
        [vectors] = embed_texts(embedder, [text])
        return vectors[0] if len(vectors) == 1 else None

    longest = max((memory.text for memory in memories), key=len)
    if len(longest) < _LONG or (whole := one(longest)) is None:
        # A text of several parts says nothing against the embedder: where it splits, it says where.
        return None
    tail = len(longest) // 10
    other = one(longest[:-tail] + (_FILLER * (tail // len(_FILLER) + 1))[:tail])
    if other is None or float(whole @ other) < _EQUAL:
        return None
    window = _shortest(len(longest), lambda length: _same(whole, one(longest[:length])))
    count = sum(len(memory.text) > window for memory in memories)
    return Finding(
        kind="truncated",
        count=count,
        of=len(memories),
        what=f"{count} of {len(memories)} memories are longer than what the embedder reads (about {window} "
        "characters): no question finds what stands behind that by its meaning.",
        advice="Give the embedder a `split` method that cuts a text where its window ends, or remember shorter turns.",
    )


def _shortest(length: int, enough: Callable[[int], bool]) -> int:
    """The least length that is enough, by halving."""
    low, high = 1, length
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _same(vector: NDArray[np.float32], other: NDArray[np.float32] | None) -> bool:
    return other is not None and float(vector @ other) > _EQUAL


def _roles(chart: Chart, embedder: Embedder) -> list[Finding | None]:
    """Whether what is stored is what the embedder gives for a document, by embedding some texts again."""
    identity = embedder.identity
    places = np.linspace(0, len(chart.sample) - 1, min(_AGAIN, len(chart.sample))).astype(int)
    rows = [(place, chart.memories[chart.sample[place]].text) for place in dict.fromkeys(places.tolist())]
    documents = embed_texts(embedder, [text for _, text in rows])
    whole = [(*row, vectors[0]) for row, vectors in zip(rows, documents, strict=True) if len(vectors) == 1]
    if not whole:
        return []
    queries = np.stack([embed_query(embedder, text) for _, text, _ in whole])
    stored = chart.vectors[[place for place, _, _ in whole]]
    again = np.stack([vector for _, _, vector in whole])
    as_document, as_query = (stored * again).sum(axis=1), (stored * queries).sum(axis=1)
    wrong = int(((as_query > as_document + _CLEARLY) & (as_query > _OWN)).sum())
    strange = int((np.maximum(as_document, as_query) < _OWN).sum())
    alike = bool(((again * queries).sum(axis=1) > _EQUAL).all())
    findings = [symptoms.role_prompts(identity, alike=alike)]
    if wrong:
        findings.append(
            Finding(
                kind="wrong_role",
                count=wrong,
                of=len(whole),
                what=f"Of {len(whole)} memories that were embedded again, {wrong} are stored as if they were "
                "questions: with the embedder's query role.",
                advice="Where you compute vectors yourself (`embeddings=`), use `embed_documents`. `memlayer reembed` "
                "puts right what is there.",
            )
        )
    if strange:
        findings.append(
            Finding(
                kind="strange_vectors",
                count=strange,
                of=len(whole),
                what=f"Of {len(whole)} memories that were embedded again, {strange} have a vector that the embedder "
                "does not give for their text: it was computed from something else, or by another model.",
                advice="Look at what is passed as `embeddings=`, and whether the model changed under the same name. "
                "`memlayer reembed` puts right what is there.",
            )
        )
    return list(findings)


def _ask(
    memory: UserMemory, memories: Sequence[Memory], questions: Sequence[str] | None, *, show_texts: bool
) -> tuple[int, list[Unanswered]]:
    """How many were asked, and those that found nothing."""
    if questions is not None:
        asked: list[tuple[str, str, datetime | None]] = [
            (str(number), text, None) for number, text in enumerate(questions, start=1)
        ]
    else:
        told = sorted(memories, key=lambda turn: turn.at)[_PAST:]
        own = [turn for turn in told if turn.role == "user" and turn.text.rstrip().endswith(("?", "\uff1f"))]
        asked = [(turn.id, turn.text, turn.at) for turn in own[-_OWN_QUESTIONS:]]
    silent = [
        Unanswered(where=where, text=text if show_texts else None)
        for where, text, at in asked
        # Of what was there when it was asked; the question itself is there now.
        if not memory.recall(text, k=1, until=at, now=at)
    ]
    return len(asked), silent


def _unanswered(count: int, asked: int, *, given: bool) -> Finding | None:
    if not count or (not given and (asked < _LEAST_QUESTIONS or count < _MANY * asked)):
        return None
    whose = "questions" if given else "latest questions of the user's"
    return Finding(
        kind="unanswered",
        count=count,
        of=asked,
        what=f"{count} of the {asked} {whose} find nothing.",
        advice="Right where nothing was ever said about it. Else look with `memlayer recall --explain --min-score 0`: "
        "where the answer is there with a low score, pass a lower `min_score=`; where it is not, it was never "
        "remembered.",
    )
