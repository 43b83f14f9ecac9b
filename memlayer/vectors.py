"""The nearest vectors of one user: one protocol, two engines that give the same answer to the last bit.

- `SqliteVecEngine`: a `vec0` table in the user's own in-memory database, for users of up to `SMALL_USER` vectors.
- `FlatEngine`: a numpy matrix, above that, and wherever sqlite-vec cannot be loaded.

Each engine draws a shortlist in its own arithmetic (float32), wide enough that no rounding can have left out one of
the k nearest. The shortlist is then scored by one function in float64 and ordered by (cosine, lower id). So equal
vectors tie exactly, in both engines.

Vectors are float32 of length 1, or all zeros (what some embedders make of a text without a known word), which have
cosine 0 with everything; `unit` makes them so. An id is a positive integer of 63 bits that the caller chooses.

A vec0 table in a file is never opened: a damaged one gives wrong neighbours or ends the process.
"""

from __future__ import annotations

import json
from typing import Any, Literal, Protocol, TypeAlias

import apsw
import numpy as np
import numpy.typing as npt

from memlayer.errors import InvalidInputError

try:
    import sqlite_vec
except ImportError:  # it has no wheel for this platform
    sqlite_vec = None

__all__ = [
    "SMALL_USER",
    "EngineName",
    "FlatEngine",
    "FloatMatrix",
    "FloatVector",
    "Ids",
    "SqliteVecEngine",
    "VectorEngine",
    "small_engine",
    "unit",
]

EngineName: TypeAlias = Literal["sqlite-vec", "flat"]
Ids: TypeAlias = npt.NDArray[np.int64]
FloatVector: TypeAlias = npt.NDArray[np.float32]
FloatMatrix: TypeAlias = npt.NDArray[np.float32]

# How many vectors a user may have before the flat engine takes over: at 500, sqlite-vec is under 0.3 ms a search.
SMALL_USER = 500

# sqlite-vec's own limits.
_VEC0_MAX_K = 4_096
_VEC0_MAX_DIMENSIONS = 8_192
_NEAREST = "SELECT rowid, vector, distance FROM vectors WHERE vector MATCH ? AND k = ?"
# With this, vec0 passes over the others before it looks for neighbours, not after.
_NEAREST_AMONG = (
    "SELECT rowid, vector, distance FROM vectors WHERE vector MATCH ? AND k = ? "
    "AND rowid IN (SELECT value FROM json_each(?))"
)
_ALL = "SELECT rowid, vector FROM vectors"
_ALL_AMONG = "SELECT rowid, vector FROM vectors WHERE rowid IN (SELECT value FROM json_each(?))"

# vec0 allocates vectors in chunks of this many. Sixteen of 384 dimensions are 24 kB, so that a user of ten memories
# costs little; 64 would make a search at 500 vectors 0.015 ms faster and every small user 75 kB larger.
_CHUNK = 16
# Fetched beyond k, so that the one look past the k-th that proves the shortlist complete needs no second query.
_SPARE = 6

# Vectors whose length is 1 within this are left as they are.
_LENGTH_TOLERANCE = 1e-6
# Rows that are scored at a time: bounds the float64 copies to a few MB.
_BLOCK = 1_024
# Above this part of all rows, one product over the whole matrix is faster than copying the candidates out (measured at
# 100k x 384: the product 6.5 ms, a copy of half the rows 31 ms).
_GATHER_BELOW = 0.2


class VectorEngine(Protocol):
    """Vectors of one length under integer ids. Not thread-safe; the owner holds a lock."""

    def __len__(self) -> int:
        """How many vectors it holds."""

    @property
    def nbytes(self) -> int:
        """Bytes held outside the user's database."""

    def add(self, ids: Ids, vectors: FloatMatrix) -> None:
        """Adds vectors of shape (n, dimensions), unit length or zeros, under `n` ids that it does not hold."""

    def remove(self, ids: Ids) -> None:
        """Removes these; an id that it does not hold is passed over."""

    def search(self, query: FloatVector, *, k: int, candidates: Ids | None) -> list[tuple[int, float]]:
        """The `k` nearest among the candidates.

        Args:
            query: shape (dimensions,), unit length or zeros.
            k: how many, at least 1; fewer come back when there are fewer.
            candidates: distinct ids, in any order; those that it does not hold are passed over. None is all.

        Returns:
            (id, cosine), nearest first; of equal ones the lower id first.
        """

    def cosines(self, query: FloatVector) -> tuple[Ids, FloatVector]:
        """All ids, in any order, with their cosines in float32; both engines' are equal to the last bit."""

    def vectors(self, ids: Ids) -> FloatMatrix:
        """The vectors under these ids, one row each; zeros for one that it does not hold."""


class SqliteVecEngine:
    """A `vec0` table in an apsw connection into which sqlite-vec is loaded.

    What it adds and removes is part of the connection's transaction.
    """

    def __init__(self, connection: apsw.Connection, dimensions: int) -> None:
        self._db = connection
        self._dimensions = dimensions
        self._count = 0
        # L2 and not cosine, which is a fifth slower and undefined for zeros; on unit vectors the order is the same.
        self._db.execute(
            f"CREATE VIRTUAL TABLE vectors USING vec0(vector float[{int(dimensions)}], chunk_size={_CHUNK})"
        )

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return 0

    def add(self, ids: Ids, vectors: FloatMatrix) -> None:
        rows = ((id_, vector.tobytes()) for id_, vector in zip(ids.tolist(), vectors, strict=True))
        self._db.executemany("INSERT INTO vectors (rowid, vector) VALUES (?, ?)", rows)
        self._count += len(ids)

    def remove(self, ids: Ids) -> None:
        self._db.executemany("DELETE FROM vectors WHERE rowid = ?", ((id_,) for id_ in ids.tolist()))
        # Asked, not reckoned: an id that was not there counts for nothing.
        self._count = self._db.execute("SELECT count(*) FROM vectors").get

    def search(self, query: FloatVector, *, k: int, candidates: Ids | None) -> list[tuple[int, float]]:
        available = self._count if candidates is None else min(self._count, len(candidates))
        wanted = min(k + _SPARE, available)
        while 0 < wanted <= _VEC0_MAX_K:
            ids, vectors, bound = self._shortlist(query, wanted, candidates)
            nearest = _nearest(query, ids, vectors, k=k)
            # Done when nothing else is left, or nothing else can be as near as the last of ours.
            if wanted == available or len(ids) < wanted or nearest[-1][1] > bound:
                return nearest
            wanted = min(2 * wanted, available)
        return _nearest(query, *self._vectors(candidates), k=k)

    def cosines(self, query: FloatVector) -> tuple[Ids, FloatVector]:
        ids, vectors = self._vectors(None)
        return ids, _products(vectors, query)

    def vectors(self, ids: Ids) -> FloatMatrix:
        found = dict(zip(*self._vectors(ids), strict=True))
        none = np.zeros(self._dimensions, dtype=np.float32)
        return np.array([found.get(id_, none) for id_ in ids.tolist()], dtype=np.float32).reshape(-1, self._dimensions)

    def flattened(self) -> FlatEngine:
        """The same vectors in a flat engine; this one is used up."""
        flat = FlatEngine(self._dimensions)
        flat.add(*self._vectors(None))
        self._db.execute("DROP TABLE vectors")
        return flat

    def _shortlist(self, query: FloatVector, wanted: int, candidates: Ids | None) -> tuple[Ids, FloatMatrix, float]:
        """Ids and vectors of the `wanted` nearest by vec0's reckoning, and a cosine that none of the others exceeds."""
        if candidates is None:
            found = self._db.execute(_NEAREST, (query.tobytes(), wanted))
        else:
            found = self._db.execute(_NEAREST_AMONG, (query.tobytes(), wanted, json.dumps(candidates.tolist())))
        rows: list[Any] = found.fetchall()
        ids, vectors = self._arrays([(id_, vector) for id_, vector, _ in rows])
        farthest = rows[-1][2] if rows else 0.0
        # |x - q|^2 = 2 - 2 cos on unit vectors. Zeros come out nearer than they are, never farther: still a bound.
        return ids, vectors, 1.0 - farthest * farthest / 2.0 + _rounding(self._dimensions)

    def _vectors(self, candidates: Ids | None) -> tuple[Ids, FloatMatrix]:
        if candidates is None:
            found = self._db.execute(_ALL)
        else:
            found = self._db.execute(_ALL_AMONG, (json.dumps(candidates.tolist()),))
        return self._arrays(found.fetchall())

    def _arrays(self, rows: list[Any]) -> tuple[Ids, FloatMatrix]:
        """Arrays of rows of (id, vector)."""
        ids = np.array([id_ for id_, _ in rows], dtype=np.int64)
        vectors = np.frombuffer(b"".join(vector for _, vector in rows), dtype=np.float32)
        return ids, vectors.reshape(len(rows), self._dimensions)


class FlatEngine:
    """A matrix with one row per vector, compared with the query as a whole.

    It grows by doubling and shrinks when three quarters stand empty; a removed row is filled from the end.
    """

    def __init__(self, dimensions: int) -> None:
        self._ids: Ids = np.empty(0, dtype=np.int64)
        self._matrix: FloatMatrix = np.empty((0, dimensions), dtype=np.float32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        return self._matrix.nbytes + self._ids.nbytes

    def add(self, ids: Ids, vectors: FloatMatrix) -> None:
        count = self._count + len(ids)
        if count > len(self._ids):
            self._resize(max(count, 2 * len(self._ids)))
        self._ids[self._count : count] = ids
        self._matrix[self._count : count] = vectors
        self._count = count

    def remove(self, ids: Ids) -> None:
        gone = np.isin(self._ids[: self._count], ids)
        count = self._count - int(np.count_nonzero(gone))
        # As many rows stand behind the new end as there are holes before it.
        holes = np.flatnonzero(gone[:count])
        movers = count + np.flatnonzero(~gone[count:])
        self._ids[holes] = self._ids[movers]
        self._matrix[holes] = self._matrix[movers]
        self._count = count
        if count < len(self._ids) // 4:
            self._resize(count)

    def search(self, query: FloatVector, *, k: int, candidates: Ids | None) -> list[tuple[int, float]]:
        if not self._count:
            return []
        if candidates is None:
            rows, cosines = np.arange(self._count), _products(self._matrix[: self._count], query)
        else:
            rows = self._rows(candidates)
            cosines = self._cosines(query, rows)
        if k < len(rows):
            kth = np.partition(cosines, -k)[-k]
            rows = rows[cosines >= kth - _rounding(len(query))]
        return _nearest(query, self._ids, self._matrix, k=k, rows=rows)

    def cosines(self, query: FloatVector) -> tuple[Ids, FloatVector]:
        return self._ids[: self._count], _products(self._matrix[: self._count], query)

    def vectors(self, ids: Ids) -> FloatMatrix:
        found = np.zeros((len(ids), self._matrix.shape[1]), dtype=np.float32)
        if self._count:
            held, order, places = self._places(ids)
            rows = order[places]
            known = held[rows] == ids
            found[known] = self._matrix[rows[known]]
        return found

    def _places(self, ids: Ids) -> tuple[Ids, Ids, Ids]:
        held = self._ids[: self._count]
        # Nearly sorted already (ids mostly rise), which a stable sort makes nothing of.
        order = np.argsort(held, kind="stable")
        places = np.searchsorted(held, ids, sorter=order)
        return held, order, np.minimum(places, self._count - 1)

    def _rows(self, candidates: Ids) -> Ids:
        """Where these ids stand."""
        held, order, places = self._places(candidates)
        rows = order[places]
        known: Ids = rows[held[rows] == candidates]
        return known

    def _cosines(self, query: FloatVector, rows: Ids) -> FloatVector:
        if len(rows) < _GATHER_BELOW * self._count:
            return _products(self._matrix[rows], query)
        return _products(self._matrix[: self._count], query)[rows]

    def _resize(self, capacity: int) -> None:
        ids, matrix = self._ids[: self._count], self._matrix[: self._count]
        self._ids = np.empty(capacity, dtype=np.int64)
        self._matrix = np.empty((capacity, matrix.shape[1]), dtype=np.float32)
        self._ids[: self._count] = ids
        self._matrix[: self._count] = matrix


def small_engine(connection: apsw.Connection, dimensions: int) -> VectorEngine:
    """The engine for a user of few vectors: sqlite-vec, or the flat one where sqlite-vec cannot be had.

    The one place where that is decided. Nothing else changes with it: the answers are the same.
    """
    if dimensions <= _VEC0_MAX_DIMENSIONS and _load_sqlite_vec(connection):
        return SqliteVecEngine(connection, dimensions)
    return FlatEngine(dimensions)


def unit(vectors: npt.NDArray[np.floating[Any]]) -> FloatMatrix:
    """The vectors, shape (n, dimensions), at length 1 in float32; zeros stay zeros.

    Raises:
        InvalidInputError: one is not finite.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    if not np.isfinite(lengths).all():
        raise InvalidInputError("a vector holds NaN or infinity")
    if not (off := (np.abs(lengths - 1.0) > _LENGTH_TOLERANCE) & (lengths > 0.0)).any():
        return np.ascontiguousarray(vectors, dtype=np.float32)
    scaled = vectors.astype(np.float64)
    scaled[off] /= lengths[off, None]
    return scaled.astype(np.float32)


def _load_sqlite_vec(connection: apsw.Connection) -> bool:
    """Whether the connection has sqlite-vec now. Extensions may be loaded during this call only."""
    if sqlite_vec is None or not hasattr(connection, "enable_load_extension"):
        return False
    connection.enable_load_extension(True)
    try:
        connection.load_extension(sqlite_vec.loadable_path())
    except apsw.Error:
        return False
    finally:
        connection.enable_load_extension(False)
    return True


def _products(matrix: FloatMatrix, query: FloatVector) -> FloatVector:
    """The product of every row with the query, in float32.

    Not `matrix @ query`: its thread pool gains nothing where memory is the limit (100k x 384: 8 ms either way), loses
    whole time slices where the other core is busy (10k: 0.1 ms at best, but 8 ms as a rule, against a steady 0.35 ms),
    and is one for all threads of the process.
    """
    products: FloatVector = np.einsum("ij,j->i", matrix, query)
    return products


def _rounding(dimensions: int) -> float:
    """More than two cosines reckoned in float32 can be off together, whatever the order of their sums.

    Each is off by at most (dimensions + 4) * 2^-23 by way of L2 (half of that as a product), and by the tolerance of
    the lengths.
    """
    return 2 * (dimensions + 4) * 2.0**-23 + 4 * _LENGTH_TOLERANCE


def _nearest(
    query: FloatVector, ids: Ids, matrix: FloatMatrix, *, k: int, rows: Ids | None = None
) -> list[tuple[int, float]]:
    """The `k` nearest of these rows (None: all) as (id, cosine): the order that both engines answer in."""
    rows = np.arange(len(ids)) if rows is None else rows
    cosines = np.empty(len(rows), dtype=np.float64)
    for start in range(0, len(rows), _BLOCK):
        block = matrix[rows[start : start + _BLOCK]].astype(np.float64)
        # Not a matrix product: a sum along the row depends on the row alone, so equal vectors have equal cosines.
        cosines[start : start + _BLOCK] = (block * query).sum(axis=1)
    ids = ids[rows]
    best = np.lexsort((ids, -cosines))[:k]
    return list(zip(ids[best].tolist(), cosines[best].tolist(), strict=True))
