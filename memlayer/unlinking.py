"""What a write takes along: the facts that were written from what it deletes or changes.

It looks at the rows of its own transaction and is asked in every write of the vault, so that no caller and no process
can forget it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from memlayer import tables
from memlayer.lineage import Round, said, without
from memlayer.sealer import ItemKind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from memlayer.rows import ItemRow, RecordRow
    from memlayer.sealer import OpenedItem, Sealer, UnlockedUser

__all__ = ["Unlinked", "round_of", "unlink"]

# The length of the name and the name, as `memlayer.items` writes them.
_HEAD = 4 + 32


@dataclass(slots=True, kw_only=True)
class Unlinked:
    """What goes along with a write.

    Attributes:
        facts: the ids of the facts that go.
        were: the elements of those that the write does not change anyway, as they were.
        put: rounds as they are now, sealed for the next generation.
        replaced: the same rounds as they were.
        drop: rounds of which nothing is left.
    """

    facts: list[bytes] = field(default_factory=list)
    were: list[int] = field(default_factory=list)
    put: list[ItemRow] = field(default_factory=list)
    replaced: list[OpenedItem] = field(default_factory=list)
    drop: list[OpenedItem] = field(default_factory=list)


def round_of(item: OpenedItem) -> Round:
    """The round in an item."""
    return Round.from_json(item.content[_HEAD:])


def unlink(
    sealer: Sealer, connection: Connection, user: UnlockedUser, *, delete: Sequence[bytes], update: Sequence[RecordRow]
) -> Unlinked | None:
    """What goes along when these records are deleted, and these are as they are given; None where nothing does."""
    if not user.manifest.items or not (delete or update):
        return None
    sealed = tables.read_items_of_kind(connection, user.uref, kind=ItemKind.FACTS)
    items = {row.item_id: sealer.open_item(row, user=user) for row in sealed}
    rounds = {item_id: round_of(item) for item_id, item in items.items()}
    changed = _changed(sealer, connection, user, update=update, known=_turns(rounds))
    after, dropped = without(rounds, gone=set(delete), changed=changed)
    unlinked = Unlinked()
    for item_id, now in after.items():
        if now:
            content = items[item_id].content[:_HEAD] + now.to_json()
            unlinked.put.append(sealer.seal_item(user, kind=ItemKind.FACTS, item_id=item_id, content=content))
            unlinked.replaced.append(items[item_id])
        else:
            unlinked.drop.append(items[item_id])
    updated = {row.memory_id for row in update}
    for row in tables.read_records_by_id(connection, user.uref, sorted(dropped)):
        if row.memory_id not in dropped:
            continue  # What is deleted is looked at twice.
        unlinked.facts.append(row.memory_id)
        if row.memory_id not in updated:
            unlinked.were.append(sealer.open_record(row, user=user).element)
    return unlinked


def _turns(rounds: Mapping[bytes, Round]) -> set[bytes]:
    turns = {turn for round_ in rounds.values() for turn in round_.turns}
    return turns.union(*(link.sources for round_ in rounds.values() for link in round_.links))


def _changed(
    sealer: Sealer, connection: Connection, user: UnlockedUser, *, update: Sequence[RecordRow], known: Collection[bytes]
) -> set[bytes]:
    """Those of the updated turns that say something else than before; other metadata is no other turn."""
    now = {row.memory_id: row for row in update if row.memory_id in known}
    rows = tables.read_records_by_id(connection, user.uref, list(now)) if now else []
    return {
        row.memory_id
        for row in rows
        if row.memory_id in now
        and said(sealer.open_record(row, user=user).memory)
        != said(sealer.open_record(now[row.memory_id], user=user).memory)
    }
