"""One user's memories in RAM, for searching: rows in an in-memory SQLite database, vectors in an engine beside it.

Built from authenticated bytes only and never written anywhere. The database is `:memory:` with `temp_store=MEMORY`
(without that, SQLite writes a large sort of an in-memory database to a file), and has no full-text table.

A turn's row is a small integer, given in the order of `seq` and never again to another turn. Its vectors have the ids
`row * MAX_PARTS`, `row * MAX_PARTS + 1`, ..., so that they sort as their turns do, and equal scores come in the order
of writing.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np
import numpy.typing as npt

from memlayer.answering import Answering, Picked
from memlayer.columns import Columns
from memlayer.errors import InvalidInputError, LimitExceededError
from memlayer.filters import MATCH_ALL, Condition, Sql, column_value
from memlayer.ranking import best_turns, part_penalty, score
from memlayer.records import History, Hit, Memory, Session, from_microseconds, to_microseconds
from memlayer.vectors import (
    SMALL_USER,
    EngineName,
    FlatEngine,
    FloatVector,
    Ids,
    SqliteVecEngine,
    VectorEngine,
    small_engine,
    unit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from datetime import datetime

    from memlayer.calibration import Calibration
    from memlayer.questions import Question
    from memlayer.ranking import Floats

__all__ = ["MAX_PARTS", "Entry", "Shown", "UserIndex"]

# The largest text has some 250 parts; twelve bits leave 51 for the row.
MAX_PARTS = 4_096

# Small columns first: a filter that reads them never touches the pages that a long text spills to.
_SCHEMA = """
PRAGMA temp_store = MEMORY;
PRAGMA page_size = {page_size};
CREATE TABLE turns (
    row INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL UNIQUE,
    at INTEGER NOT NULL,
    expires INTEGER,
    written INTEGER NOT NULL,
    source TEXT NOT NULL,
    role TEXT NOT NULL,
    session TEXT,
    speaker TEXT,
    key BLOB NOT NULL UNIQUE,
    stamp BLOB NOT NULL,
    id TEXT NOT NULL,
    image TEXT,
    metadata TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX turns_by_time ON turns (at, seq);
CREATE INDEX turns_by_session ON turns (session, at, seq) WHERE session IS NOT NULL;
CREATE INDEX turns_by_expiry ON turns (expires) WHERE expires IS NOT NULL;
CREATE TABLE fields (
    turn INTEGER NOT NULL,
    key TEXT NOT NULL,
    value NOT NULL,
    PRIMARY KEY (turn, key)
) WITHOUT ROWID;
CREATE INDEX fields_by_value ON fields (key, value);
"""
# Ten memories of 384 dimensions cost 148 kB of RSS with these pages and 187 kB with 4,096 (measured); filters at 100k
# memories take a tenth longer for it.
_PAGE_SIZE = 1_024
# What SQLite, sqlite-vec and their statements hold beside the pages; the same ten memories, measured.
_CONNECTION_BYTES = 100_000
# Statements differ with the shape of a filter. Each cached one holds some kilobytes, in every cached user.
_CACHED_STATEMENTS = 16

_MEMORY_COLUMNS = "row, seq, id, text, role, speaker, session, at, metadata, source, expires, written, image"
_SEQ, _AT = 1, 7
_CURSOR = struct.Struct(">qq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A memory as the index takes it.

    Attributes:
        key: the memory's id in the store, 16 bytes.
        seq: its place in the order of writing, from 0; unique among this user's memories.
        stamp: 32 bytes that the owner recognises this state of it by; nothing to the index.
        memory: what a recall gives back.
        vectors: float, shape (parts, dimensions), one row per part of the text; no rows for a memory that only filters
            and history find.
        pictures: how many of the vectors, at the end, are of the memory's image: 0 or 1.
    """

    key: bytes
    seq: int
    stamp: bytes
    memory: Memory
    vectors: npt.NDArray[np.floating[Any]]
    pictures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a search shows of what it found.

    Attributes:
        parts: what each score is made of.
        neighbours: up to so many turns before and after each hit.
        split: for the best passage of a long text, how the embedder splits texts; None shows none.
    """

    parts: bool = False
    neighbours: int = 0
    split: Callable[[str], Sequence[str]] | None = None


SHOWN = Shown()


class UserIndex:
    """What one user's recall, history and filters ask. Not thread-safe: its owner holds a lock around every call.

    Args:
        dimensions: the length of every vector.
        engine: None is sqlite-vec for small users and the flat engine from then on; a name is that one always.
    """

    def __init__(self, *, dimensions: int, engine: EngineName | None = None) -> None:
        self._dimensions = dimensions
        self._may_flatten = engine is None
        self._db = apsw.Connection(":memory:", statementcachesize=_CACHED_STATEMENTS)
        self._db.execute(_SCHEMA.format(page_size=_PAGE_SIZE))
        self._engine: VectorEngine = FlatEngine(dimensions) if engine == "flat" else small_engine(self._db, dimensions)
        self._columns = Columns()
        self._next_row = 0
        # How many vectors a turn has, where that is not one.
        self._parts: dict[int, int] = {}
        # The vectors of images.
        self._pictures: set[int] = set()

    def __len__(self) -> int:
        """How many memories it holds, expired ones too."""
        return int(self._db.execute("SELECT count(*) FROM turns").get)

    @property
    def nbytes(self) -> int:
        """Bytes held: the database's pages, the matrix where there is one, and what the connection itself costs."""
        pages: Any = self._db.execute("PRAGMA page_count").get
        return int(pages) * _PAGE_SIZE + self._engine.nbytes + self._columns.nbytes + _CONNECTION_BYTES

    @property
    def speakers(self) -> Collection[str]:
        """Who speaks in the memories."""
        return self._columns.speakers

    def close(self) -> None:
        """Frees the memory. Nothing else may be called afterwards."""
        self._db.close()
        self._engine = FlatEngine(self._dimensions)
        self._columns = Columns()

    def apply(self, entries: Iterable[Entry], *, removed: Iterable[bytes]) -> None:
        """Removes `removed`, then adds `entries`, each in place of the one with its key if there is one.

        An unknown key in `removed` is passed over; of two entries with one key the last stands. If it raises, the index
        is of no use any more and its owner drops it.

        Raises:
            InvalidInputError: vectors of another shape, not finite, or two memories with one `seq`.
            LimitExceededError: over 4,096 vectors for one memory.
        """
        latest = {entry.key: entry for entry in entries}
        try:
            with self._db:
                freed = self._remove([*removed, *latest])
                if latest:
                    self._add(sorted(latest.values(), key=lambda entry: entry.seq), freed=freed)
        except apsw.ConstraintError:
            raise InvalidInputError("two memories of one user have the same place in the order of writing") from None

    def stamps(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The stamps of those of these keys that are here."""
        found = self._db.executemany("SELECT key, stamp FROM turns WHERE key = ?", ((key,) for key in keys))
        return dict(found)

    def keys(self) -> set[bytes]:
        """The keys of all memories, expired ones too."""
        return {key for (key,) in self._db.execute("SELECT key FROM turns")}

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
        candidates = self._candidates(condition)
        best = self._best_turns(query, k=_positive(k, name="k"), candidates=candidates, floor=floor)
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
        if (candidates := self._candidates(condition)) is not None:
            rows = np.intersect1d(rows, candidates // MAX_PARTS)
        answering = Answering(
            self._columns,
            cosines=calibration.cosines(self._best_parts(query, less_luck="length" not in without)),
            vectors=lambda rows: self._engine.vectors(rows.astype(np.int64) * MAX_PARTS),
            cosines_with=lambda vector: self._best_parts(vector, less_luck=False),
            without=without,
            knows_all_languages=knows_all_languages,
        )
        picked, top = answering.best(question, rows=rows.astype(np.int32), k=_positive(k, name="k"), now=now)
        scores = [calibration.score(turn.value, top=top) for turn in picked]
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
        hits = []
        for turn, fit in zip(found, scores, strict=True):
            hit = Hit.model_construct(
                **self._fields_of(turn.row),
                score=fit,
                count=turn.count,
                passage=self._passage(turn.row, query, shown.split),
                parts=turn.parts if shown.parts else None,
            )
            sides: list[list[Hit]] = []
            for side in self._columns.around(turn.row, shown.neighbours) if shown.neighbours else ():
                rows = [row for row in side if row not in there and (allowed is None or row in allowed)]
                there.update(rows)
                sides.append([
                    Hit.model_construct(**self._fields_of(row), score=fit, beside=hit.id) for row in rows
                ])  # fmt: skip
            before, after = sides or ([], [])
            hits += [*before, hit, *after]
        return hits

    def _fields_of(self, row: int) -> dict[str, Any]:
        return _fields(self._turns(_MEMORY_COLUMNS, Sql("row = ?", (row,))).fetchone())

    def _passage(self, row: int, query: FloatVector, split: Callable[[str], Sequence[str]] | None) -> str | None:
        """The part of a turn that is nearest to the query; None where it has but one, or is no longer split so."""
        parts = self._parts.get(row, 1) - (row * MAX_PARTS + self._parts.get(row, 1) - 1 in self._pictures)
        if split is None or parts < 2:
            return None
        passages = split(self._fields_of(row)["text"])
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

    def get(self, key: bytes) -> Memory | None:
        """The memory with this key, expired or not, or None."""
        row = self._turns(_MEMORY_COLUMNS, Sql("key = ?", (key,))).fetchone()
        return None if row is None else _memory(row)

    def history(self, *, session: str | None, limit: int, before: str | None, alive_at: datetime | None) -> History:
        """The last turns by the time they were said, and in the order of writing where that is the same.

        Args:
            session: of this conversation; None is of all, and of none.
            limit: how many at most, at least 1.
            before: the cursor of an earlier history: the turns before that one.
            alive_at: leaves out what expires at or before this time.

        Returns:
            The turns, oldest first, with a cursor if there are older ones.

        Raises:
            InvalidInputError: `before` is no cursor, or `limit` is not positive.
        """
        wanted = Condition(session=session, alive_at=alive_at).sql
        if before is not None:
            wanted = Sql(
                f"{wanted.text} AND (turns.at, turns.seq) < (?, ?)", (*wanted.parameters, *_read_cursor(before))
            )
        limit = min(_positive(limit, name="limit"), len(self))
        newest_first: list[Any] = self._turns(
            _MEMORY_COLUMNS, wanted, f"ORDER BY at DESC, seq DESC LIMIT {limit + 1}"
        ).fetchall()
        shown = newest_first[:limit]
        memories = [_memory(row) for row in reversed(shown)]
        return History(memories, cursor=_cursor(shown[-1]) if len(newest_first) > limit else None)

    def sessions(self, alive_at: datetime | None) -> list[Session]:
        """The conversations, the one with the latest turn first.

        Args:
            alive_at: turns that expire at or before this time count for nothing.
        """
        rows = self._turns(
            "session, min(at), max(at), count(*)",
            Condition(alive_at=alive_at).sql,
            "AND session IS NOT NULL GROUP BY session ORDER BY max(at) DESC, session",
        )
        return [
            Session.model_construct(id=id_, first=from_microseconds(first), last=from_microseconds(last), count=count)
            for id_, first, last, count in rows
        ]

    def matching(self, condition: Condition) -> list[bytes]:
        """The keys of the memories that fulfil the condition, in the order of writing."""
        return [key for (key,) in self._turns("key", condition.sql, "ORDER BY seq")]

    def count(self, condition: Condition) -> int:
        """How many memories fulfil the condition."""
        return int(self._turns("count(*)", condition.sql).get)

    def _turns(self, columns: str, wanted: Sql, rest: str = "") -> apsw.Cursor:
        """Rows of `turns`. The text is made of constants and numbers of ours only, in `wanted` too (see `filters`)."""
        return self._db.execute(
            f"SELECT {columns} FROM turns WHERE {wanted.text} {rest}",  # noqa: S608
            wanted.parameters,
        )

    def _remove(self, keys: list[bytes]) -> dict[int, int]:
        """Rows, fields and vectors of those of these keys that are here; which row each `seq` of them had."""
        deleted: list[Any] = self._db.executemany(
            "DELETE FROM turns WHERE key = ? RETURNING row, seq, text, speaker, session, at", ((key,) for key in keys)
        ).fetchall()
        turns = np.array([row[0] for row in deleted], dtype=np.int64)
        if not len(turns):
            return {}
        for row, seq, text, speaker, session, at in deleted:
            self._columns.remove(row, text=text, speaker=speaker, session=session, at=at, seq=seq)
        self._db.executemany("DELETE FROM fields WHERE turn = ?", ((row,) for row in turns.tolist()))
        self._engine.remove(self._vector_ids(turns))
        for row in turns.tolist():
            self._pictures.discard(row * MAX_PARTS + self._parts.pop(row, 1) - 1)
        return {seq: row for row, seq, *_ in deleted}

    def _add(self, entries: list[Entry], *, freed: dict[int, int]) -> None:
        """Rows, fields and vectors of entries that are not here; one that was has the row again that it had."""
        rows = []
        for entry in entries:
            rows.append(freed.get(entry.seq, self._next_row))
            self._next_row = max(self._next_row, rows[-1] + 1)
        self._db.executemany(
            "INSERT INTO turns VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            ((row, *_row(entry)) for row, entry in zip(rows, entries, strict=True)),
        )
        self._db.executemany(
            "INSERT INTO fields VALUES (?, ?, ?)",
            (
                (row, key, column_value(value))
                for row, entry in zip(rows, entries, strict=True)
                for key, value in entry.memory.metadata.items()
            ),
        )
        for row, entry in zip(rows, entries, strict=True):
            self._columns.add(row, entry.memory, seq=entry.seq)
        self._add_vectors(entries, rows=rows)

    def _add_vectors(self, entries: list[Entry], *, rows: list[int]) -> None:
        for row, entry in zip(rows, entries, strict=True):
            if entry.vectors.ndim != 2 or entry.vectors.shape[1] != self._dimensions:
                raise InvalidInputError(
                    f"the vectors of a memory have shape {entry.vectors.shape}, not (parts, {self._dimensions})"
                )
            if (parts := len(entry.vectors)) > MAX_PARTS:
                raise LimitExceededError(f"a memory has over {MAX_PARTS} vectors", limit=MAX_PARTS)
            if parts != 1:
                self._parts[row] = parts
            self._pictures.update(row * MAX_PARTS + part for part in range(parts - entry.pictures, parts))
        vectors = unit(np.concatenate([entry.vectors for entry in entries]))
        ids = self._vector_ids(np.array(rows, dtype=np.int64))
        grown = len(self._engine) + len(ids) > SMALL_USER
        if grown and self._may_flatten and isinstance(self._engine, SqliteVecEngine):
            # For good: a user who had many memories soon has them again.
            self._engine = self._engine.flattened()
        self._engine.add(ids, vectors)

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

    def _candidates(self, condition: Condition) -> Ids | None:
        """The ids of the vectors of the turns that fulfil the condition; None where that is every turn."""
        if condition.alive_at is not None and not self._any_expired(condition.alive_at):
            condition = replace(condition, alive_at=None)
        if condition.sql == MATCH_ALL:
            return None
        rows = self._turns("row", condition.sql)
        return self._vector_ids(np.fromiter((row for (row,) in rows), dtype=np.int64))

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


def _row(entry: Entry) -> tuple[int | str | bytes | None, ...]:
    """A row of `turns`, in the order of its columns."""
    memory = entry.memory
    return (
        entry.seq,
        to_microseconds(memory.at),
        None if memory.expires is None else to_microseconds(memory.expires),
        to_microseconds(memory.written),
        memory.source,
        memory.role,
        memory.session,
        memory.speaker,
        entry.key,
        entry.stamp,
        memory.id,
        memory.image_sha256,
        json.dumps(memory.metadata, ensure_ascii=False) if memory.metadata else "{}",
        memory.text,
    )


def _memory(row: Any) -> Memory:
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


def _cursor(row: Any) -> str:
    """The place of a row of `_MEMORY_COLUMNS` in the history."""
    return _CURSOR.pack(row[_AT], row[_SEQ]).hex()


def _read_cursor(cursor: str) -> tuple[int, int]:
    """(at, seq) of the turn that a history ended with."""
    try:
        at, seq = _CURSOR.unpack(bytes.fromhex(cursor))
    except (TypeError, ValueError, struct.error):
        raise InvalidInputError("before is no cursor; pass the cursor of an earlier history") from None
    return at, seq


def _positive(value: int, *, name: str) -> int:
    if type(value) is not int or value < 1:
        raise InvalidInputError(f"{name} must be a positive int", name=name)
    return value
