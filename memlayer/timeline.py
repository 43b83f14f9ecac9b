"""Which turn came before which in its conversation: what a short turn is about is often said next to it.

Turns are named by their row, a small integer of the owner's that may be used again once its turn is removed. Not
thread-safe: the owner holds a lock.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Rows", "Timeline"]

Rows: TypeAlias = "NDArray[np.int32]"
"""Rows of turns; -1 for none."""

# What a place in a conversation takes: a tuple of three integers, and two places in arrays.
_TURN_BYTES = 140

_MINUTE = 60 * 1_000_000
# Whoever comes back after this long, in microseconds, begins with something else.
_PAUSE = 12 * 60 * _MINUTE
# Turns without a session are of one conversation while no more time passes than this. Not where none passes: those were
# remembered at once, and may have nothing to do with each other.
_PAUSE_OUTSIDE = 30 * _MINUTE
# Where no time passes between two turns of a session, perhaps nobody knew more than the day. Then they follow each
# other only if so few others at most were written between them.
_WRITTEN_TOGETHER = 8


class Timeline:
    """The conversations of one user, each in the order in which it was held."""

    def __init__(self) -> None:
        # By session: (at, seq, row), sorted.
        self._turns: dict[str | None, list[tuple[int, int, int]]] = {}
        self._before = np.full(64, -1, dtype=np.int32)
        self._after = np.full(64, -1, dtype=np.int32)
        self._count = 0

    @property
    def nbytes(self) -> int:
        """Bytes held, roughly."""
        return self._count * _TURN_BYTES + self._before.nbytes + self._after.nbytes

    def add(self, row: int, *, session: str | None, at: int, seq: int) -> None:
        """Adds a turn under a row that is free.

        Args:
            session: its conversation, or None.
            at: when it was said, in microseconds.
            seq: its place in the order of writing, where two were said at the same time.
        """
        if row >= len(self._before):
            more = np.full(max(row + 1 - len(self._before), len(self._before)), -1, dtype=np.int32)
            self._before, self._after = np.concatenate([self._before, more]), np.concatenate([self._after, more])
        turns = self._turns.setdefault(session, [])
        insort(turns, (at, seq, row))
        place = bisect_left(turns, (at, seq, row))
        self._link(turns, place, session)
        self._link(turns, place + 1, session)
        self._count += 1

    def remove(self, row: int, *, session: str | None, at: int, seq: int) -> None:
        """Removes the turn at a row; its neighbours become each other's."""
        turns = self._turns[session]
        place = bisect_left(turns, (at, seq, row))
        if place:
            self._after[turns[place - 1][2]] = -1
        del turns[place]
        self._before[row] = self._after[row] = -1
        if turns:
            self._link(turns, place, session)
        else:
            del self._turns[session]
        self._count -= 1

    def neighbours(self, distance: int) -> Rows:
        """For each row the row of the turn so many places later in its conversation, earlier where it is negative."""
        step = self._before if distance < 0 else self._after
        found = step
        for _ in range(abs(distance) - 1):
            # Row -1 is the last one; what it points to is overruled.
            found = np.where(found < 0, -1, step[found])
        return found

    def around(self, row: int, distance: int) -> tuple[list[int], list[int]]:
        """The rows of up to so many turns before and after one in its conversation, each in order."""
        sides: tuple[list[int], list[int]] = ([], [])
        for side, step in zip(sides, (self._before, self._after), strict=True):
            at = row
            while len(side) < distance and (at := int(step[at])) >= 0:
                side.append(at)
        return sides[0][::-1], sides[1]

    def _link(self, turns: list[tuple[int, int, int]], place: int, session: str | None) -> None:
        """Has the turn at a place and the one before it point to each other."""
        if place >= len(turns):
            return
        at, seq, row = turns[place]
        if place == 0:
            self._before[row] = -1
            return
        earlier, its, other = turns[place - 1]
        apart = at - earlier
        if session is None:
            linked = 0 < apart <= _PAUSE_OUTSIDE
        else:
            linked = 0 < apart <= _PAUSE or (not apart and seq - its <= _WRITTEN_TOGETHER + 1)
        if not linked:
            self._before[row] = self._after[other] = -1
        else:
            self._before[row], self._after[other] = other, row
