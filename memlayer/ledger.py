"""The prompt ledger: which memories were put behind which message of a conversation. For one user.

An entry holds ids and no text: what is in a later request is rendered anew from the memories that still are there, so a
forgotten one leaves every later request, in every process. Entries are sealed items of the user's; one that nobody has
answered yet waits in RAM and is written together with what it belongs to, so that a turn costs one commit.

Sealed content:    {"a": said at, in microseconds, "d": done, "m": [memory ids, hex], "s": said, "t": turn, hex}
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from memlayer.batch import found_ids
from memlayer.errors import FormatTooNewError, StoreDamagedError
from memlayer.items import ItemKind, named, put
from memlayer.records import from_microseconds, to_microseconds
from memlayer.writes import ItemChanges

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from memlayer.records import Memory
    from memlayer.resident import Resident
    from memlayer.vault import OpenedItem, UnlockedUser, Vault

__all__ = ["Entry", "Ledger", "Pending"]

MAX_ENTRIES = 512
"""How many entries a user has in the store; the oldest go first. A conversation of 4,000 sticky tokens has some tens of
them, so this is the last ten or more conversations, and what is lost with one is a provider's cache."""

_DROPPED_AT_ONCE = 64

_FIELDS = {"a": int, "d": bool, "m": list, "s": bool, "t": str}


@dataclass(frozen=True, slots=True)
class Entry:
    """What was put behind one message.

    Attributes:
        memory_ids: of the memories in the block, 16 bytes each, best first.
        turn: 16 random bytes, the id under which the user's own turn is remembered: once, whoever gets to it.
        at: when the user said it, UTC.
        said: whether the user's turn has been remembered.
        done: whether the reply has been remembered.
    """

    memory_ids: tuple[bytes, ...]
    turn: bytes
    at: datetime
    said: bool = False
    done: bool = False

    def to_json(self) -> bytes:
        """The content of its item."""
        values = {
            "a": to_microseconds(self.at),
            "d": self.done,
            "m": [memory_id.hex() for memory_id in self.memory_ids],
            "s": self.said,
            "t": self.turn.hex(),
        }
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Entry:
        """The entry of an authentic item.

        Raises:
            FormatTooNewError: it has fields that this version does not know.
            StoreDamagedError: it is not what `to_json` makes.
        """
        try:
            values = json.loads(content)
            if values.keys() - _FIELDS.keys():
                raise FormatTooNewError("an entry of the ledger has fields that this memlayer does not know")
            if any(type(values[key]) is not kind for key, kind in _FIELDS.items()):
                raise TypeError
            memory_ids = tuple(map(bytes.fromhex, values["m"]))
            turn, at = bytes.fromhex(values["t"]), from_microseconds(values["a"])
            if any(len(identifier) != 16 for identifier in (turn, *memory_ids)):
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            raise StoreDamagedError("an entry of the ledger is not written as it must be") from None
        return cls(memory_ids, turn, at, said=values["s"], done=values["d"])


class Pending:
    """Entries that nobody has answered yet, of all users of a store; in RAM only."""

    # Requests that are under way at one moment; what is dropped here is asked for anew.
    _MOST = 4096

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, bytes], Entry] = OrderedDict()

    def get(self, user_id: str, key: bytes) -> Entry | None:
        """The entry behind a message."""
        with self._lock:
            return self._entries.get((user_id, key))

    def add(self, user_id: str, key: bytes, entry: Entry) -> Entry:
        """Keeps an entry; of two that were made at once the first one stands, and is what this gives."""
        with self._lock:
            entry = self._entries.setdefault((user_id, key), entry)
            if len(self._entries) > self._MOST:
                self._entries.popitem(last=False)
            return entry

    def remove(self, user_id: str, key: bytes) -> None:
        """It is in the store now."""
        with self._lock:
            self._entries.pop((user_id, key), None)

    def clear(self, user_id: str) -> None:
        """The user was erased."""
        with self._lock:
            for name in [name for name in self._entries if name[0] == user_id]:
                del self._entries[name]

    def forked(self) -> None:
        """In the child of a fork: the parent's lock may have been held."""
        self._lock = threading.Lock()


class Ledger:
    """One user's ledger."""

    def __init__(self, user_id: str, *, vault: Vault, resident: Resident, pending: Pending) -> None:
        self._user_id = user_id
        self._vault = vault
        self._resident = resident
        self._pending = pending

    def look(self, keys: Sequence[bytes]) -> tuple[dict[bytes, Entry], dict[bytes, Memory], int]:
        """The entries behind these messages; the memories in them that still are there and have not expired, by their
        16 bytes; and the user's generation."""
        entries: dict[bytes, Entry] = {}
        memories: dict[bytes, Memory] = {}
        now = datetime.now(UTC)
        with self._resident.reading() as (user, index):
            for key in keys:
                entry = self._pending.get(self._user_id, key) or self._sealed(key, user)
                if entry is None:
                    continue
                entries[key] = entry
                for memory_id in entry.memory_ids:
                    memory = None if index is None else index.get(memory_id)
                    if memory is not None and (memory.expires is None or memory.expires > now):
                        memories[memory_id] = memory
            generation = 0 if user is None else user.manifest.generation
        return entries, memories, generation

    def open(self, key: bytes, entry: Entry, memories: Iterable[Memory]) -> Entry:
        """Notes an entry for a message, with these memories in its block; where somebody was quicker, theirs."""
        # They have just been recalled: no need to look again. Where the user was evicted in between, none is found, and
        # the block stands in this one request.
        with self._resident.known() as (user, index):
            ids = found_ids([memory.id for memory in memories], user=user, index=index)
        return self._pending.add(self._user_id, key, Entry(ids, entry.turn, entry.at))

    def current(self, user: UnlockedUser | None, key: bytes, entry: Entry) -> Entry:
        """The entry as it stands in the store, if it is still about the same turn; else this one. Inside of the
        resident's `reading` or `writing`.

        Another turn that has no reply yet is taken for the same one: two processes were asked it at once.
        """
        sealed = self._sealed(key, user)
        if sealed is None or entry.said:
            return entry
        return sealed if sealed.turn == entry.turn or not sealed.done else entry

    def changes(self, user: UnlockedUser, key: bytes, entry: Entry) -> ItemChanges:
        """What writing this entry does to the user's items; inside of the resident's `writing`."""
        items = self._resident.items
        there = self._sealed(key, user)
        if there is not None and there.turn == entry.turn:
            # Somebody else may have been quicker with the reply: what has been done is not undone.
            entry = replace(entry, said=entry.said or there.said, done=entry.done or there.done)
        row, name = put(self._vault, user, kind=ItemKind.LEDGER, name=key.hex(), content=entry.to_json())
        oldest: list[OpenedItem] = []
        if len(items) >= MAX_ENTRIES:
            own = [at for at in items if at[0] == ItemKind.LEDGER and at != name]
            # Many at once: after a deletion, whoever follows has to look for what is gone.
            own.sort(key=lambda at: items[at].version)
            most = MAX_ENTRIES - _DROPPED_AT_ONCE
            oldest = [items[at] for at in own[: max(0, len(own) - most)]] if len(own) >= MAX_ENTRIES else []
        return ItemChanges(put=[row], replaced=[items[name]] if name in items else [], drop=oldest)

    def written(self, key: bytes) -> None:
        """The entry is in the store."""
        self._pending.remove(self._user_id, key)

    def _sealed(self, key: bytes, user: UnlockedUser | None) -> Entry | None:
        if user is None:
            return None
        at = (ItemKind.LEDGER, user.keys.item_id(ItemKind.LEDGER, key.hex().encode()))
        item: OpenedItem | None = self._resident.items.get(at)
        return None if item is None else Entry.from_json(named(item)[1])
