"""The prompt ledger: which memories were put behind which message of a conversation. For one user.

An entry holds ids and no text: what is in a later request is rendered anew from the memories that still are there, so a
forgotten one leaves every later request, in every process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from memlayer.records import Memory

__all__ = ["Entry", "Ledger", "Pending"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What was put behind one message.

    Attributes:
        memory_ids: of the memories in the block, 16 bytes each, best first.
        turn: 16 random bytes, the id under which the user's own turn is remembered: once, whoever gets to it.
        at: when the user said it, UTC.
        done: whether the reply has been remembered.
    """

    memory_ids: tuple[bytes, ...]
    turn: bytes
    at: datetime
    done: bool


class Pending:
    """Entries that are not in the store yet, because nothing has answered; of all users, in RAM only."""

    _MOST = 4096

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, bytes], Entry] = OrderedDict()

    def get(self, user_id: str, key: bytes) -> Entry | None:
        with self._lock:
            return self._entries.get((user_id, key))

    def note(self, user_id: str, key: bytes, entry: Entry) -> Entry:
        """Keeps an entry; where one that nobody has answered is there already, that one stands."""
        with self._lock:
            there = self._entries.get((user_id, key))
            if there is not None and not there.done:
                return there
            self._entries[user_id, key] = entry
            while len(self._entries) > self._MOST:
                self._entries.popitem(last=False)
            return entry

    def put(self, user_id: str, key: bytes, entry: Entry) -> None:
        with self._lock:
            self._entries[user_id, key] = entry

class Ledger:
    def __init__(self, user_id: str, *, pending: Pending, index: Callable[[], dict[bytes, Memory]]) -> None:
        self._user_id = user_id
        self._pending = pending
        self._index = index

    def look(self, keys: Sequence[bytes]) -> tuple[dict[bytes, Entry], dict[bytes, Memory]]:
        entries = {key: entry for key in keys if (entry := self._pending.get(self._user_id, key)) is not None}
        memories = self._index() if entries else {}
        return entries, memories

    def note(self, key: bytes, entry: Entry) -> Entry:
        return self._pending.note(self._user_id, key, entry)

    def ids(self, memories: Iterable[Memory]) -> tuple[bytes, ...]:
        return tuple(bytes.fromhex(memory.id) for memory in memories)
