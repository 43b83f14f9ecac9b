"""What a question is compared with beside the vectors: of each turn of one user a few numbers, its words, its place.

Turns are named by their row, a small integer; a row of a forgotten one is nobody's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from memlayer.dates import named_window
from memlayer.kinds import kind_of
from memlayer.lexical import LexicalIndex
from memlayer.ranking import DISTANCES, beside
from memlayer.records import to_microseconds
from memlayer.timeline import Timeline
from memlayer.words import width

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from memlayer.ranking import Beside
    from memlayer.records import Memory
    from memlayer.windows import Window

__all__ = ["Columns", "Gone"]

# `kind` is what texts share that say the same, see `memlayer.kinds`; `since` and `until` are of the time
# that it names, in microseconds.
_COLUMNS: Final = {
    "there": np.bool_, "width": np.int32, "speaker": np.int32, "session": np.int32, "assistant": np.bool_,
    "tool": np.bool_, "at": np.int64, "since": np.int64, "until": np.int64, "kind": np.int64,
}  # fmt: skip
# People tell of a thing for some days after it happened, in microseconds.
_TOLD_LATER = 7 * 24 * 3600 * 1_000_000


class Gone(NamedTuple):
    """A turn that is to be removed; `at` in microseconds, `seq` its place in the order of writing."""

    row: int
    seq: int
    text: str
    speaker: str | None
    session: str | None
    at: int


class Columns:
    """The turns of one user. Not thread-safe: the owner holds a lock.

    Attributes:
        lexical: the words of the turns.
        size: all rows are below this.
    """

    def __init__(self) -> None:
        self.lexical = LexicalIndex()
        self.size = 0
        self._timeline = Timeline()
        self._arrays: dict[str, NDArray[Any]] = {name: np.zeros(64, dtype=kind) for name, kind in _COLUMNS.items()}
        self._speakers = _Numbers()
        self._sessions = _Numbers()
        self._beside: Beside | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held, roughly."""
        held = sum(array.nbytes for array in self._arrays.values()) + self._timeline.nbytes + self.lexical.nbytes
        return held + (0 if self._beside is None else self._beside.nbytes)

    @property
    def speakers(self) -> Collection[str]:
        """Who speaks in the turns."""
        return self._speakers.names

    @property
    def sessions(self) -> int:
        """How many conversations there are."""
        return len(self._sessions.names)

    def add(self, row: int, memory: Memory, *, seq: int) -> None:
        """Adds a turn under a row that is free; written as the `seq`-th."""
        if row >= len(self._arrays["there"]):
            for name, array in self._arrays.items():
                self._arrays[name] = np.concatenate([array, np.zeros(max(row + 1, len(array)), dtype=array.dtype)])
        self.size = max(self.size, row + 1)
        at = to_microseconds(memory.at)
        named = named_window(memory.text, now=memory.at)
        values = {
            "there": True,
            "width": width(memory.text),
            "speaker": self._speakers.take(memory.speaker),
            "session": self._sessions.take(memory.session),
            "assistant": memory.role == "assistant",
            "tool": memory.role == "tool" or memory.source == "tool",
            "at": at,
            "since": at if named is None else to_microseconds(named.since),
            "until": at if named is None else to_microseconds(named.until),
            # Two pictures with one caption are two.
            "kind": kind_of(memory.text) if not memory.has_image else hash((kind_of(memory.text), memory.image_sha256)),
        }
        for name, value in values.items():
            self._arrays[name][row] = value
        self._timeline.add(row, session=memory.session, at=at, seq=seq)
        self.lexical.add(row, memory.text)
        self._beside = None

    def remove(self, turns: Sequence[Gone]) -> None:
        """Removes turns, and all that was kept of their texts."""
        rows = [turn.row for turn in turns]
        for array in self._arrays.values():
            array[rows] = 0
        for turn in turns:
            self._speakers.give_back(turn.speaker)
            self._sessions.give_back(turn.session)
            self._timeline.remove(turn.row, session=turn.session, at=turn.at, seq=turn.seq)
        self.lexical.remove({turn.row: turn.text for turn in turns})
        self._beside = None

    def column(self, name: str) -> NDArray[Any]:
        """One number of each turn, by row."""
        return self._arrays[name][: self.size]

    def others_than(self, speakers: Collection[str]) -> NDArray[np.bool_]:
        """Which turns are of none of these speakers."""
        speaker = self.column("speaker")
        others = np.ones(self.size, dtype=np.bool_)
        for name in speakers:
            others &= speaker != self._speakers.names[name][0]
        return others

    def in_time(self, window: Window) -> NDArray[np.bool_]:
        """Which turns are of a time: said in it or shortly after, or telling of it."""
        since, until = to_microseconds(window.since), to_microseconds(window.until)
        at = self.column("at")
        told = (self.column("since") < until) & (self.column("until") > since)
        return ((at >= since) & (at < until + _TOLD_LATER)) | told

    def around(self, row: int, distance: int) -> tuple[list[int], list[int]]:
        """The turns before and after one in its conversation; see `Timeline.around`."""
        return self._timeline.around(row, distance)

    @property
    def beside(self) -> Beside:
        """The turns' neighbours in their conversations, and what each counts."""
        if self._beside is None:
            neighbours = {distance: self._timeline.neighbours(distance)[: self.size] for distance in DISTANCES}
            self._beside = beside(self.column("width"), neighbours)
        return self._beside


class _Numbers:
    """Names as numbers: 0 for None, and one never used again for each other name."""

    def __init__(self) -> None:
        # The number, and how many turns have it.
        self.names: dict[str, list[int]] = {}
        self._next = 1

    def take(self, name: str | None) -> int:
        if name is None:
            return 0
        if name not in self.names:
            self.names[name] = [self._next, 0]
            self._next += 1
        self.names[name][1] += 1
        return self.names[name][0]

    def give_back(self, name: str | None) -> None:
        if name is not None:
            self.names[name][1] -= 1
            if not self.names[name][1]:
                del self.names[name]
