"""From a question to the turns that answer it best: asks the legs, weighs, and picks. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memlayer import ranking
from memlayer.dates import named_window
from memlayer.words import is_unspaced

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from numpy.typing import NDArray

    from memlayer.columns import Columns
    from memlayer.questions import Question
    from memlayer.ranking import Floats, Part
    from memlayer.timeline import Rows

__all__ = ["Answering", "Picked"]

# How many of the best turns are looked at for texts that say the same.
_POOL = 100
# Of texts that say the same no more than these are looked at where they are over a third of the pool: the rest makes
# room, so that two hundred copies do not hide what comes behind them.
_SAME = 10
_ROUNDS = 4
_PROBES = 8
# Of so many vectors a product is worth its threads: it is over before they would begin.
_SMALL = 256
# The best are asked for at once, before the first is picked.
_PICKS = 16
# More than any part adds to a turn's value.
_OUT_OF_REACH = 9


@dataclass(frozen=True, slots=True)
class Picked:
    """A turn that was picked.

    Attributes:
        row: the turn's.
        value: how well it fits, in units of a cosine, when it was picked.
        parts: what the value is the sum of.
        count: how many turns have this text, this one among them.
    """

    row: int
    value: float
    parts: dict[Part, float]
    count: int


class Answering:
    """One question to one user's turns.

    Args:
        columns: the turns.
        cosines: of each turn with the question's vector, by row; of its best part, less what is luck.
        vectors: gives the first vectors of turns, one row each.
        cosines_with: gives the cosines of all turns with a vector, by row.
        without: the parts that are switched off.
        knows_all_languages: whether the embedder knows more than its English.
    """

    def __init__(
        self,
        columns: Columns,
        *,
        cosines: Floats,
        vectors: Callable[[Rows], Floats],
        cosines_with: Callable[[Floats], Floats],
        without: Collection[str],
        knows_all_languages: bool,
    ) -> None:
        self._columns = columns
        self._cosines = cosines
        self._vectors_of = vectors
        self._last: tuple[Rows, Floats] | None = None
        self._cosines_with = cosines_with
        self._without = without
        self._knows_all_languages = knows_all_languages

    def best(
        self, question: Question, *, rows: Rows, k: int, now: datetime, explain: bool = False
    ) -> tuple[list[Picked], float]:
        """The best `k` of these turns, best first, and the value of the best one; with `explain`, with their parts."""
        if not len(rows):
            return [], 0.0
        knows_language = self._knows_all_languages or not is_unspaced(question.words)
        parts = self._parts(question, now=now, knows_language=knows_language)
        values = np.zeros(self._columns.size, dtype=np.float32)
        for part in parts.values():
            values += part
        if self._on("session") and 1 < self._columns.sessions < len(rows):
            among = np.full_like(values, -np.inf)
            among[rows] = values[rows]
            parts["session"] = ranking.session_part(among, self._columns.column("session"))
            values += parts["session"]
        alike = ranking.ALIKE if knows_language else ranking.ALIKE_UNKNOWN
        pool = self._pool(values, rows, most=max(_POOL, 2 * k), alike=alike)
        places, counts = self._distinct(pool)
        pool = pool[places]
        tools = self._columns.column("tool")[pool]
        chosen = ranking.picked(
            values[pool],
            alike=self._alike(pool, alike, k=k) if self._on("diversity") else None,
            tools=tools,
            k=k,
        )
        found = []
        for at, value in chosen:
            row = int(pool[at])
            its = {name: float(part[row]) for name, part in parts.items()} if explain else {}
            if explain and (off := value - float(values[row])):
                its["diversity"] = off
            found.append(Picked(row, value, its, counts[at]))
        return found, float(values[pool[0]])

    def _alike(self, pool: Rows, alike: float, *, k: int) -> Callable[[int], NDArray[np.bool_]]:
        """Gives, for a place in the pool, which places say the same."""
        vectors = self._vectors(pool)
        first = _products(vectors[: min(k, _PICKS)], vectors) > alike
        return lambda place: first[place].copy() if place < len(first) else _cosines(vectors, vectors[place]) > alike

    def _vectors(self, rows: Rows) -> Floats:
        """The first vectors of turns; mostly it is the same pool again."""
        if self._last is None or not np.array_equal(self._last[0], rows):
            self._last = rows, self._vectors_of(rows)
        return self._last[1]

    def _on(self, part: Part) -> bool:
        return part not in self._without

    def _parts(self, question: Question, *, now: datetime, knows_language: bool) -> dict[Part, Floats]:
        columns = self._columns
        beside = columns.beside if self._on("context") else None
        vector = lexical = others = assistant = words = in_time = None
        if self._on("vector"):
            vector = self._cosines if beside is None else ranking.in_context(self._cosines, beside=beside)
        if self._on("lexical"):
            lexical = columns.lexical.scores(question.words, size=columns.size, beside=beside)
        if self._on("speaker") and question.about:
            others = columns.others_than(question.about)
        if self._on("role"):
            says = columns.column("assistant")
            # Where nobody but the assistant speaks, or nobody is one, the role says nothing.
            assistant = says if says.any() and not says[columns.column("there")].all() else None
        if self._on("length"):
            words = columns.lexical.lengths(columns.size)
        if self._on("time") and (window := named_window(question.asking, now=now)) is not None:
            in_time = columns.in_time(window)
        return ranking.weigh(
            vector=vector,
            knows_language=knows_language,
            lexical=lexical,
            others=others,
            assistant=assistant,
            words=words,
            in_time=in_time,
        )

    def _pool(self, values: Floats, rows: Rows, *, most: int, alike: float) -> Rows:
        """The best turns, best first."""
        if not self._on("diversity"):
            return ranking.pooled(values, rows, most=most)
        pool = self._varied(values, rows, most=most, alike=alike)
        tools = self._columns.column("tool")
        if tools[pool].any():
            # Whoever writes through a tool never fills the pool alone.
            lowered = np.where(tools, values - _OUT_OF_REACH, values).astype(np.float32)
            own = self._varied(lowered, rows, most=most, alike=alike)
            pool = ranking.pooled(values, np.union1d(pool, own), most=2 * most)
        return pool

    def _varied(self, values: Floats, rows: Rows, *, most: int, alike: float) -> Rows:
        """The best turns; of one kind of text that is over a third of them only the best few, and the next come in."""
        pool = ranking.pooled(values, rows, most=most)
        for _ in range(_ROUNDS):
            if len(rows) <= most:
                break
            vectors = self._vectors(pool)
            # What is over a third of them is met by one of a few that stand apart; all pairs would take longer than all
            # the rest of a recall.
            probes = vectors[:: max(1, most // _PROBES)]
            near = [np.count_nonzero(fits > alike) for fits in _products(probes, vectors)]
            copied = next((vector for vector, count in zip(probes, near, strict=True) if count > most / 3), None)
            if copied is None:
                break
            copies = rows[self._cosines_with(copied)[rows] > alike]
            too_many = ranking.pooled(values, copies, most=len(copies))[_SAME:]
            rows = np.setdiff1d(rows, too_many)
            pool = ranking.pooled(values, rows, most=most)
        return pool

    def _distinct(self, pool: Rows) -> tuple[NDArray[np.int64], list[int]]:
        """The places of turns that differ in more than case, spaces and punctuation, and how many each stands for."""
        if not self._on("duplicates"):
            return np.arange(len(pool)), [1] * len(pool)
        kinds = self._columns.column("kind")[pool].tolist()
        if len(set(kinds)) == len(kinds):
            return np.arange(len(pool)), [1] * len(pool)
        first: dict[int, int] = {}
        counts: dict[int, int] = {}
        for place, kind in enumerate(kinds):
            shown = first.setdefault(kind, place)
            counts[shown] = counts.get(shown, 0) + 1
        return np.array(list(counts), dtype=np.int64), list(counts.values())


def _products(some: Floats, vectors: Floats) -> Floats:
    """The cosine of each of a few with each of many."""
    if len(vectors) <= _SMALL:
        return some @ vectors.T
    return np.array([_cosines(vectors, vector) for vector in some])


def _cosines(vectors: Floats, vector: Floats) -> Floats:
    # Of many vectors no matrix product: its threads cost more than they save; see `memlayer.vectors`.
    cosines: Floats = np.einsum("ij,j->i", vectors, vector)
    return cosines
