"""Named things of one user's that are no memories: files of a tool, entries of a framework's store, the prompt ledger.

They are sealed as memories are, counted in the user's manifest, erased with the user, and held in RAM with the index.
An item's name is sealed with its content; the row shows a keyed hash of it.

Sealed content:    name length u32 | name | content
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from memlayer.errors import InvalidInputError, LimitExceededError, StoreDamagedError
from memlayer.records import utf8
from memlayer.sealer import ItemKind
from memlayer.writes import ItemChanges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from memlayer.resident import Resident
    from memlayer.rows import ItemRow
    from memlayer.vault import OpenedItem, UnlockedUser, Vault

__all__ = ["ItemKind", "Items", "named", "put"]

MAX_ITEM_BYTES = 4 * 1024 * 1024
"""How large an item may be with its name: one seal, and one place in RAM, for what a program writes and no person."""

_HEAD = struct.Struct(">I")


class Items:
    """One user's items of one kind. Get them from `UserMemory.items`; shareable by threads."""

    def __init__(
        self, kind: ItemKind, *, vault: Vault, resident: Callable[[], Resident], scrub: Callable[[], object]
    ) -> None:
        if kind == ItemKind.IMAGE:
            raise InvalidInputError("images belong to memories; remember(image=) and image(id) are the way to them")
        self._kind = kind
        self._vault = vault
        self._resident = resident
        self._scrub = scrub

    def read(self) -> dict[str, bytes]:
        """All of them by name, as of now."""
        resident = self._resident()
        with resident.reading():
            return self._contents(resident.items)

    @contextmanager
    def change(self) -> Iterator[dict[str, bytes]]:
        """All of them by name, to be changed in place: what the block leaves there is written when it ends, in one
        transaction, and nothing is when it raises. No other write to the store happens meanwhile: be quick. The sealed
        bytes of what the block removes or replaces are overwritten, as `forget` does it.

        Raises:
            LimitExceededError: an item is too large; nothing was written.
            StoreBusyError: the block writes to the store by another way, and would wait for itself.
        """
        resident = self._resident()
        with self._vault.write() as write, resident.writing(write) as (user, _):
            there = resident.items
            before = self._contents(there)
            after = dict(before)
            yield after
            changes = self._changes(user, there, before=before, after=after)
            if changes.put or changes.drop:
                self._vault.change(write, user, items=changes)
        if changes.replaced or changes.drop:
            self._scrub()

    def _contents(self, items: Mapping[tuple[int, bytes], OpenedItem]) -> dict[str, bytes]:
        return dict(named(item) for (kind, _), item in items.items() if kind == self._kind)

    def _changes(
        self,
        user: UnlockedUser,
        there: Mapping[tuple[int, bytes], OpenedItem],
        *,
        before: Mapping[str, bytes],
        after: Mapping[str, bytes],
    ) -> ItemChanges:
        changed = {name: content for name, content in after.items() if name not in before or before[name] != content}
        rows = [
            put(self._vault, user, kind=self._kind, name=name, content=content) for name, content in changed.items()
        ]
        gone = [
            (self._kind, user.keys.item_id(self._kind, utf8(name, name="name")))
            for name in before.keys() - after.keys()
        ]
        return ItemChanges(
            put=[row for row, _ in rows],
            replaced=[there[key] for _, key in rows if key in there],
            drop=[there[key] for key in gone],
        )


def put(
    vault: Vault, user: UnlockedUser, *, kind: ItemKind, name: str, content: bytes
) -> tuple[ItemRow, tuple[int, bytes]]:
    """The row of an item for the user's next generation, and its kind and id."""
    if not isinstance(name, str):
        raise InvalidInputError(f"an item's name must be a str, not {type(name).__name__}")
    if not isinstance(content, bytes):
        raise InvalidInputError(f"an item's content must be bytes, not {type(content).__name__}")
    encoded = utf8(name, name="name")
    if len(encoded) + len(content) > MAX_ITEM_BYTES:
        raise LimitExceededError(f"an item is larger than {MAX_ITEM_BYTES} bytes with its name", limit=MAX_ITEM_BYTES)
    item_id = user.keys.item_id(kind, encoded)
    sealed = vault.sealer.seal_item(
        user, kind=kind, item_id=item_id, content=_HEAD.pack(len(encoded)) + encoded + content
    )
    return sealed, (kind, item_id)


def named(item: OpenedItem) -> tuple[str, bytes]:
    """An item's name and content."""
    content = item.content
    if len(content) >= _HEAD.size:
        end = _HEAD.size + _HEAD.unpack_from(content)[0]
        # A slice that ends behind the end would be a shorter name, and no content.
        if end <= len(content):
            try:
                return content[_HEAD.size : end].decode(), content[end:]
            except UnicodeDecodeError:
                pass
    raise StoreDamagedError("an item is not written as it must be")
