"""A transaction that writes, and what it changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memlayer import tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

    from memlayer.guard import Note
    from memlayer.rows import ItemRow, RecordRow
    from memlayer.sealer import OpenedItem, UnlockedUser

__all__ = ["Change", "ItemChanges", "Write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemChanges:
    """What one write does to a user's items.

    Attributes:
        put: as they are now, sealed for the next generation.
        replaced: those of them that were there before, as they were, verified.
        drop: what goes, as it was, verified.
    """

    put: Sequence[ItemRow] = ()
    replaced: Sequence[OpenedItem] = ()
    drop: Sequence[OpenedItem] = ()

    def write(self, connection: Connection, uref: bytes) -> None:
        """Writes the rows."""
        there = {(item.kind, item.item_id) for item in self.replaced}
        new = [row for row in self.put if (row.kind, row.item_id) not in there]
        if new:
            tables.insert_items(connection, new)
        for row in self.put:
            if (row.kind, row.item_id) in there:
                tables.update_item(connection, row)
        for kind in {item.kind for item in self.drop}:
            item_ids = [item.item_id for item in self.drop if item.kind == kind]
            tables.delete_items(connection, uref, kind=kind, item_ids=item_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One generation of one user.

    Attributes:
        before, after: the user.
        rows: the records that are new or other ones.
        deleted: the ids of records that went.
        items: what changed of the items.
    """

    before: UnlockedUser
    after: UnlockedUser
    rows: Sequence[RecordRow]
    deleted: Sequence[bytes]
    items: ItemChanges


@dataclass(slots=True)
class Write:
    """A transaction that writes.

    Attributes:
        connection: inside of the transaction.
        notes: for the rollback guard, what it changed: by bucket, the new generation and seal.
        buckets: the sealed manifests of these buckets as it leaves them.
        changes: what it changed of users, but for moves and erasures.
        grown: the references of users who have new memories by it.
    """

    connection: Connection
    notes: dict[int, Note] = field(default_factory=dict)
    buckets: dict[int, bytes] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    grown: set[bytes] = field(default_factory=set)
