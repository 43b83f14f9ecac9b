"""One user's memories in RAM, for searching: rows in an in-memory SQLite database, vectors in an engine beside it.

Built from authenticated bytes only and never written anywhere. The database is `:memory:` with `temp_store=MEMORY`
(without that, SQLite writes a large sort of an in-memory database to a file), and has no full-text table.

A turn's row is a small integer, given in the order of `seq`; when most rows are nobody's they are given anew. A turn's
vectors have the ids `row * MAX_PARTS`, `row * MAX_PARTS + 1`, ..., so that they sort as their turns do: equal scores
come in the order of writing.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np
import numpy.typing as npt

from memlayer.columns import Gone
from memlayer.errors import InvalidInputError, LimitExceededError
from memlayer.filters import MATCH_ALL, Condition, Sql, column_value
from memlayer.records import History, Memory, Session, from_microseconds, to_microseconds
from memlayer.searching import MAX_PARTS, MEMORY_COLUMNS, Searching, memory_of, positive
from memlayer.vectors import (
    SMALL_USER,
    EngineName,
    FlatEngine,
    SqliteVecEngine,
    VectorEngine,
    small_engine,
    unit,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

__all__ = ["Entry", "UserIndex"]

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
# Rows are given anew when more of them than this many times the turns, and these, were given.
_GAPS, _FEW_ROWS = 2, 1_000
# Statements differ with the shape of a filter. Each cached one holds some kilobytes, in every cached user.
_CACHED_STATEMENTS = 16

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


class UserIndex(Searching):
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
        self._made = None
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
        made = 0 if self._made is None else self._made.nbytes
        return int(pages) * _PAGE_SIZE + self._engine.nbytes + made + _CONNECTION_BYTES

    def close(self) -> None:
        """Frees the memory. Nothing else may be called afterwards."""
        self._db.close()
        self._engine = FlatEngine(self._dimensions)
        self._made = None

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
                if self._next_row > _GAPS * len(self) + _FEW_ROWS:
                    self._renumber()
        except apsw.ConstraintError:
            raise InvalidInputError("two memories of one user have the same place in the order of writing") from None

    def stamps(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The stamps of those of these keys that are here."""
        found = self._db.executemany("SELECT key, stamp FROM turns WHERE key = ?", ((key,) for key in keys))
        return dict(found)

    def keys(self) -> set[bytes]:
        """The keys of all memories, expired ones too."""
        return {key for (key,) in self._db.execute("SELECT key FROM turns")}

    def get(self, key: bytes) -> Memory | None:
        """The memory with this key, expired or not, or None."""
        row = self._turns(MEMORY_COLUMNS, Sql("key = ?", (key,))).fetchone()
        return None if row is None else memory_of(row)

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
        limit = min(positive(limit, name="limit"), len(self))
        newest_first: list[Any] = self._turns(
            MEMORY_COLUMNS, wanted, f"ORDER BY at DESC, seq DESC LIMIT {limit + 1}"
        ).fetchall()
        shown = newest_first[:limit]
        memories = [memory_of(row) for row in reversed(shown)]
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

    def _remove(self, keys: list[bytes]) -> dict[int, int]:
        """Rows, fields and vectors of those of these keys that are here; which row each `seq` of them had."""
        deleted: list[Any] = self._db.executemany(
            "DELETE FROM turns WHERE key = ? RETURNING row, seq, text, speaker, session, at", ((key,) for key in keys)
        ).fetchall()
        turns = np.array([row[0] for row in deleted], dtype=np.int64)
        if not len(turns):
            return {}
        if self._made is not None:
            self._made.remove([Gone(*row) for row in deleted])
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
        if self._made is not None:
            for row, entry in zip(rows, entries, strict=True):
                self._made.add(row, entry.memory, seq=entry.seq)
        self._add_vectors(entries, rows=rows)

    def _renumber(self) -> None:
        """Gives rows anew, in the same order and without gaps: what holds a place a row, and every recall that goes
        over it, would otherwise grow with all that was ever written and forgotten."""
        turns: list[Any] = self._turns(MEMORY_COLUMNS, MATCH_ALL, "ORDER BY row").fetchall()
        olds = [turn[0] for turn in turns]
        ids = self._vector_ids(np.array(olds, dtype=np.int64))
        vectors = self._engine.vectors(ids)
        self._engine.remove(ids)
        # In this order every new row is free: it is never above the old one.
        self._db.executemany("UPDATE turns SET row = ? WHERE row = ?", enumerate(olds))
        self._db.executemany("UPDATE fields SET turn = ? WHERE turn = ?", enumerate(olds))
        news = {old: new for new, old in enumerate(olds)}
        self._parts = {news[old]: count for old, count in self._parts.items()}
        self._pictures = {news[id_ // MAX_PARTS] * MAX_PARTS + id_ % MAX_PARTS for id_ in self._pictures}
        self._made = None
        self._engine.add(self._vector_ids(np.arange(len(turns), dtype=np.int64)), vectors)
        self._next_row = len(turns)

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


def _cursor(row: Any) -> str:
    """The place of a row of `MEMORY_COLUMNS` in the history."""
    return _CURSOR.pack(row[_AT], row[_SEQ]).hex()


def _read_cursor(cursor: str) -> tuple[int, int]:
    """(at, seq) of the turn that a history ended with."""
    try:
        at, seq = _CURSOR.unpack(bytes.fromhex(cursor))
    except (TypeError, ValueError, struct.error):
        raise InvalidInputError("before is no cursor; pass the cursor of an earlier history") from None
    return at, seq
