"""The searching half of a user's index: by a vector, and by a question. Reads only."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from memlayer.answering import Answering, Picked
from memlayer.columns import Columns
from memlayer.errors import InvalidInputError
from memlayer.filters import MATCH_ALL, Condition, Sql
from memlayer.ranking import best_turns, part_penalty, score
from memlayer.records import Hit, Memory, from_microseconds, to_microseconds
from memlayer.vectors import unit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    import apsw

    from memlayer.calibration import Calibration
    from memlayer.questions import Question
    from memlayer.ranking import Floats
    from memlayer.vectors import FloatVector, Ids, VectorEngine

__all__ = ["MAX_PARTS", "MEMORY_COLUMNS", "Searching", "Shown", "memory_of", "positive"]

# The largest text has some 250 parts; twelve bits leave 51 for the row.
MAX_PARTS = 4_096

_SEQ = 1
MEMORY_COLUMNS = "row, seq, id, text, role, speaker, session, at, metadata, source, expires, written, image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a search shows of what it found.

    Attributes:
        parts: what each score is made of.
        neighbours: up to so many turns before and after each hit.
        hidden: the keys of memories that are not to be found.
        split: for the best passage of a long text, how the embedder splits texts; None shows none.
    """

    parts: bool = False
    neighbours: int = 0
    hidden: Collection[bytes] = ()
    split: Callable[[str], Sequence[str]] | None = None


SHOWN = Shown()


class Searching:
    """What one user's recall asks. Not thread-safe: its owner holds a lock around every call."""

    _dimensions: int
    _db: apsw.Connection
    _engine: VectorEngine
    # What questions are compared with; None until the first one.
    _made: Columns | None
    # By row: how many vectors a turn has, where that is not one.
    _parts: dict[int, int]
    # The ids of the vectors of images.
    _pictures: set[int]

    @property
    def _columns(self) -> Columns:
        """Made when a question first needs them: a vector, a filter and a history do without, and a user who is read
        for one of those is in RAM in half the time."""
        if self._made is None:
            made = Columns()
            for turn in self._turns(MEMORY_COLUMNS, MATCH_ALL, "ORDER BY row"):
                made.add(turn[0], memory_of(turn), seq=turn[_SEQ])
            # Whole or not at all: Ctrl-C on the way must not leave some of the turns out of every later answer.
            self._made = made
        return self._made

    @property
    def is_ready(self) -> bool:
        """Whether a question finds made what it needs, which is then part of `nbytes`."""
        return self._made is not None

    @property
    def speakers(self) -> Collection[str]:
        """Who speaks in the memories."""
        return self._columns.speakers

    def search(
        self,
        vector: npt.NDArray[np.floating[Any]],
        *,
        k: int,
        condition: Condition,
        floor: float,
        shown: Shown = SHOWN,
    ) -> list[Hit]:
        """The memories nearest to a vector, among those that fulfil the condition.

        Args:
            vector: the query's, shape (dimensions,); its length does not matter.
            k: how many at most, at least 1.
            condition: which memories are looked at; what it leaves out takes no place among the `k`.
            floor: the least score that counts; 0 keeps everything.
            shown: what is shown of each hit, and beside it.

        Returns:
            Best first, of equal ones the earlier written first. The score is the cosine of the memory's best part, 0 to
            1.

        Raises:
            InvalidInputError: a vector of another shape or not finite, or `k` is not positive.
        """
        query = self._query(vector)
        candidates = self._candidates(condition, hidden=shown.hidden)
        best = self._best_turns(query, k=positive(k, name="k"), candidates=candidates, floor=floor)
        found = [Picked(row, cosine, {"vector": cosine}, 1) for row, cosine in best]
        return self._hits(found, [turn.value for turn in found], query=query, candidates=candidates, shown=shown)

    def answer(
        self,
        question: Question,
        vector: npt.NDArray[np.floating[Any]],
        *,
        k: int,
        condition: Condition,
        floor: float,
        now: datetime,
        calibration: Calibration,
        without: Collection[str] = (),
        knows_all_languages: bool = True,
        shown: Shown = SHOWN,
    ) -> list[Hit]:
        """The memories that fit a question best, among those that fulfil the condition; see `memlayer.ranking`.

        Args:
            question: read with this index's speakers.
            vector: of `question.spoken`, shape (dimensions,).
            k, condition, floor, shown: as `search` has them; the floor is of calibrated scores.
            now: what "last week" is counted from.
            calibration: makes scores of values.
            without: the parts that are switched off.
            knows_all_languages: whether the embedder knows more than English.

        Returns:
            Best first, of equal ones the earlier written first; texts that are equal once.
        """
        query = self._query(vector)
        rows = np.flatnonzero(self._columns.column("there"))
        if (candidates := self._candidates(condition, hidden=shown.hidden)) is not None:
            rows = np.intersect1d(rows, candidates // MAX_PARTS)
        if 0 in self._parts.values():  # these are for filters and history alone
            rows = np.setdiff1d(rows, [row for row, parts in self._parts.items() if not parts])
        answering = Answering(
            self._columns,
            cosines=calibration.cosines(self._best_parts(query, less_luck="length" not in without)),
            vectors=lambda rows: self._engine.vectors(rows.astype(np.int64) * MAX_PARTS),
            cosines_with=lambda vector: self._best_parts(vector, less_luck=False),
            without=without,
            knows_all_languages=knows_all_languages,
        )
        picked, top = answering.best(
            question, rows=rows.astype(np.int32), k=positive(k, name="k"), now=now, explain=shown.parts
        )
        scores = [calibration.score(turn.value, top=top, turns=len(rows)) for turn in picked]
        found = [(turn, fit) for turn, fit in zip(picked, scores, strict=True) if fit >= floor]
        return self._hits(
            [turn for turn, _ in found], [fit for _, fit in found], query=query, candidates=candidates, shown=shown
        )

    def _hits(
        self,
        found: Sequence[Picked],
        scores: Sequence[float],
        *,
        query: FloatVector,
        candidates: Ids | None,
        shown: Shown,
    ) -> list[Hit]:
        """The hits with what is shown of them, and the turns beside each, once each and in order."""
        allowed = None if candidates is None else set((candidates // MAX_PARTS).tolist())
        there = {turn.row for turn in found}
        fields = self._fields_of_all(there)
        hits = []
        for turn, fit in zip(found, scores, strict=True):
            hit = Hit.model_construct(
                **fields[turn.row],
                score=fit,
                count=turn.count,
                passage=self._passage(turn.row, fields[turn.row]["text"], query, shown.split),
                parts=turn.parts if shown.parts else None,
            )
            sides: list[list[Hit]] = []
            for side in self._columns.around(turn.row, shown.neighbours) if shown.neighbours else ():
                rows = [row for row in side if row not in there and (allowed is None or row in allowed)]
                there.update(rows)
                beside = self._fields_of_all(rows)
                sides.append([Hit.model_construct(**beside[row], score=fit, beside=hit.id) for row in rows])
            before, after = sides or ([], [])
            hits += [*before, hit, *after]
        return hits

    def _fields_of_all(self, rows: Collection[int]) -> dict[int, dict[str, Any]]:
        """By row, and in one query: each takes longer than what it finds."""
        wanted = Sql("row IN (SELECT value FROM json_each(?))", (json.dumps(list(rows)),))
        return {turn[0]: _fields(turn) for turn in self._turns(MEMORY_COLUMNS, wanted)}

    def _passage(
        self, row: int, text: str, query: FloatVector, split: Callable[[str], Sequence[str]] | None
    ) -> str | None:
        """The part of a turn that is nearest to the query; None where it has but one, or is no longer split so."""
        parts = self._parts.get(row, 1) - (row * MAX_PARTS + self._parts.get(row, 1) - 1 in self._pictures)
        if split is None or parts < 2:
            return None
        passages = split(text)
        vectors = self._engine.vectors(row * MAX_PARTS + np.arange(parts, dtype=np.int64))
        best = int(np.argmax(np.einsum("ij,j->i", vectors, query)))
        return passages[best] if len(passages) == parts else None

    def _best_parts(self, query: FloatVector, *, less_luck: bool) -> Floats:
        """For each turn the cosine of its best part, without what is luck where that is asked; 0 for a turn without
        vectors."""
        ids, cosines = self._engine.cosines(query)
        # A picture is one ticket, however long its caption is.
        seen = np.isin(ids, list(self._pictures)) if self._pictures else None
        pictures, fits = (ids[seen], cosines[seen]) if seen is not None else (ids[:0], cosines[:0])
        ids, cosines = (ids[~seen], cosines[~seen]) if seen is not None else (ids, cosines)
        best = np.zeros(self._columns.size, dtype=np.float32)
        turns = ids // MAX_PARTS
        if self._parts:
            best[turns] = -np.inf
            np.maximum.at(best, turns, cosines)
            several = np.array(list(self._parts), dtype=np.int64)
            texts = np.array(list(self._parts.values()), dtype=np.int64)
            texts -= np.isin(several * MAX_PARTS + texts - 1, pictures)
            if less_luck:
                best[several] -= part_penalty(texts.astype(np.int32))
            np.maximum.at(best, pictures // MAX_PARTS, fits)
            best[~np.isfinite(best)] = 0
        else:
            best[turns] = cosines
        return best

    def _turns(self, columns: str, wanted: Sql, rest: str = "") -> apsw.Cursor:
        """Rows of `turns`. The text is made of constants and numbers of ours only, in `wanted` too (see `filters`)."""
        return self._db.execute(
            f"SELECT {columns} FROM turns WHERE {wanted.text} {rest}",  # noqa: S608
            wanted.parameters,
        )

    def _vector_ids(self, turns: Ids) -> Ids:
        """The ids of all vectors of these turns, turn by turn."""
        if not self._parts:
            return turns * MAX_PARTS
        parts = np.array([self._parts.get(row, 1) for row in turns.tolist()], dtype=np.int64)
        firsts = np.cumsum(parts) - parts
        return np.repeat(turns * MAX_PARTS - firsts, parts) + np.arange(parts.sum())

    def _query(self, vector: npt.NDArray[np.floating[Any]]) -> FloatVector:
        if vector.shape != (self._dimensions,):
            raise InvalidInputError(f"the query's vector has shape {vector.shape}, not ({self._dimensions},)")
        query: FloatVector = unit(vector[None, :])[0]
        return query

    def _candidates(self, condition: Condition, *, hidden: Collection[bytes] = ()) -> Ids | None:
        """The ids of the vectors of the turns that fulfil the condition; None where that is every turn."""
        if condition.alive_at is not None and not self._any_expired(condition.alive_at):
            condition = replace(condition, alive_at=None)
        if condition.sql == MATCH_ALL and not hidden:
            return None
        rows = np.fromiter((row for (row,) in self._turns("row", condition.sql)), dtype=np.int64)
        if hidden:
            gone = self._db.executemany("SELECT row FROM turns WHERE key = ?", ((key,) for key in hidden))
            rows = np.setdiff1d(rows, np.fromiter((row for (row,) in gone), dtype=np.int64))
        return self._vector_ids(rows)

    def _any_expired(self, at: datetime) -> bool:
        """Whether anything has: most users' memories never expire, and then all vectors are searched as they lie."""
        expired = self._turns("1", Sql("expires <= ?", (to_microseconds(at),)), "LIMIT 1")
        return expired.fetchone() is not None

    def _best_turns(
        self, query: FloatVector, *, k: int, candidates: Ids | None, floor: float
    ) -> list[tuple[int, float]]:
        """(row, score), best first. Asks for more vectors until the parts of few turns no longer crowd out others."""
        wanted = min(2 * k if self._parts else k, len(self._engine))
        while True:
            nearest = self._engine.search(query, k=max(wanted, 1), candidates=candidates)
            best = best_turns(((id_ // MAX_PARTS, cosine) for id_, cosine in nearest), k=k, floor=floor)
            if len(best) == k or len(nearest) < wanted or wanted == len(self._engine) or score(nearest[-1][1]) < floor:
                return best
            wanted = min(2 * wanted, len(self._engine))


def memory_of(row: Any) -> Memory:
    """A memory from `_MEMORY_COLUMNS`. Nothing is checked again: what is in here was authenticated and valid."""
    return Memory.model_construct(**_fields(row))


def _fields(row: Any) -> dict[str, Any]:
    _, _, id_, text, role, speaker, session, at, metadata, source, expires, written, image = row
    return {
        "id": id_,
        "text": text,
        "role": role,
        "speaker": speaker,
        "session": session,
        "at": from_microseconds(at),
        "metadata": json.loads(metadata) if metadata != "{}" else {},
        "source": source,
        "expires": None if expires is None else from_microseconds(expires),
        "written": from_microseconds(written),
        "image_sha256": image,
    }


def positive(value: int, *, name: str) -> int:
    if type(value) is not int or value < 1:
        raise InvalidInputError(f"{name} must be a positive int", name=name)
    return value
