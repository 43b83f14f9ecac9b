"""One user on the way to another embedder: what is known of the rows, and the vectors in the new space.

It is looked at again and again while others write: each look reads what changed since, and must add up to the user's
manifest. Nothing here writes.

Content of a saved item, behind its name (the memory's id in hex):    embedder number u64 | text version u64 | vectors
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from memlayer import tables
from memlayer.errors import StoreDamagedError
from memlayer.items import MAX_ITEM_BYTES, named, put
from memlayer.payload import count_pictures, decode_vectors, encode_vectors
from memlayer.sealer import ItemKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from sqlalchemy.engine import Connection

    from memlayer.rows import ItemRow, RecordRow
    from memlayer.sealer import OpenedRecord
    from memlayer.vault import UnlockedUser, Vault

    Vectors = NDArray[np.float32]

__all__ = ["Moving", "Prepared"]

_ROWS_AT_ONCE = 500
_SAVED = struct.Struct(">QQ")
_NO_VECTORS = (0, None, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """All records of a user, sealed for one generation with their vectors of the new embedder.

    Attributes:
        rows: of a text field only the tag.
        were: the versions of the vectors until then.
        added: the elements of `rows` in the user's multiset hash.
        removed: the elements of the records as they were.
    """

    rows: list[RecordRow]
    were: list[int]
    added: list[int]
    removed: list[int]


class Moving:
    """One user on the way.

    Args:
        user_id: whose.
        vault: opens the rows.
        number: of the embedder that the user is moved to.

    Attributes:
        user: as last looked at; None before that, and for one who is gone.
        unsaved: the records whose vectors are in RAM only.
    """

    def __init__(self, user_id: str, *, vault: Vault, number: int) -> None:
        self.user_id = user_id
        self._vault = vault
        self._number = number
        self._clear()

    def _clear(self) -> None:
        self.user: UnlockedUser | None = None
        self.unsaved: set[bytes] = set()
        # By id, oldest first; of a text field only the tag, of a vector field nothing.
        self._rows: dict[bytes, RecordRow] = {}
        self._elements: dict[bytes, int] = {}
        self._items: dict[tuple[int, bytes], int] = {}
        # With the version of the text that they were made from, and how many are of the image.
        self._vectors: dict[bytes, tuple[int, Vectors, int]] = {}
        self._prepared: Prepared | None = None

    @property
    def is_due(self) -> bool:
        """Whether the user is there, and has not been moved."""
        return self.user is not None and self.user.embedder_no != self._number

    @property
    def unlocked(self) -> UnlockedUser:
        """The user, who must be there."""
        if self.user is None:
            raise StoreDamagedError("a user who is being moved is gone")
        return self.user

    @property
    def has_saved(self) -> bool:
        """Whether vectors were saved beside the old ones."""
        return any(kind == ItemKind.VECTORS for kind, _ in self._items)

    def is_same(self, user: UnlockedUser) -> bool:
        """Whether this is still the user that was looked at: not erased and begun anew, not moved."""
        known = self.user
        return known is not None and (known.row.data_key, known.embedder_no) == (user.row.data_key, user.embedder_no)

    def due(self) -> list[bytes]:
        """The records without vectors of their present text, oldest first."""
        return [
            memory_id
            for memory_id, row in self._rows.items()
            if self._vectors.get(memory_id, _NO_VECTORS)[0] != row.text_version
        ]

    def take(self, row: RecordRow, vectors: Vectors, *, pictures: int) -> None:
        """Vectors in the new space, made from this row's text and, so many of them, from its image."""
        self._vectors[row.memory_id] = (row.text_version, vectors, pictures)
        self.unsaved.add(row.memory_id)

    def open(self, connection: Connection, memory_ids: Sequence[bytes]) -> list[tuple[RecordRow, OpenedRecord]]:
        """These records, opened, oldest first; in the snapshot that was just looked at."""
        rows = tables.read_records_by_id(connection, self.unlocked.uref, memory_ids)
        return [
            (row, self._vault.sealer.open_record(row, user=self.unlocked))
            for row in sorted(rows, key=lambda row: row.seq)
        ]

    # ---------------------------------------------------------------- what is there

    def look(self, connection: Connection) -> None:
        """Brings it up to what the store holds, which must add up to the user's manifest."""
        user = self._vault.unlock(connection, self.user_id)
        if user is None or not self.is_same(user):
            self._clear()
        if user is None or user.embedder_no == self._number:
            self.user = user
            return
        if self.user is not None and user.row == self.user.row:
            return
        self._prepared = None
        self._read(connection, user, after=0 if self.user is None else self.user.manifest.generation)
        if not self._holds(user):
            # Nothing says which rows were deleted; those that are known and not in the store can be the answer.
            for memory_id in self._rows.keys() - set(self._vault.ids(connection, user)):
                del self._rows[memory_id], self._elements[memory_id]
                self._vectors.pop(memory_id, None)
                self.unsaved.discard(memory_id)
            for item in self._items.keys() - set(self._vault.item_ids(connection, user)):
                del self._items[item]
            if not self._holds(user):
                self._vault.refuse_rows()
        self.user = user

    def _holds(self, user: UnlockedUser) -> bool:
        total = sum(self._elements.values()) + sum(self._items.values())
        return user.manifest.holds(records=len(self._rows), items=len(self._items), total=total)

    def _read(self, connection: Connection, user: UnlockedUser, *, after: int) -> None:
        sealer, keys = self._vault.sealer, user.keys
        for rows in _records(connection, user, after=after):
            for row in rows:
                self._elements[row.memory_id] = sealer.element(row, keys=keys)
                self._rows[row.memory_id] = row._replace(text=row.text[-16:], vector=b"")
        for items in _sealed_items(connection, user, after=after):
            for item in items:
                self._items[item.kind, item.item_id] = sealer.item_element(item, keys=keys)
                if item.kind == ItemKind.VECTORS:
                    self._restore(named(sealer.open_item(item, user=user)))

    def _restore(self, saved: tuple[str, bytes]) -> None:
        name, content = saved
        memory_id = bytes.fromhex(name)
        number, version = _SAVED.unpack_from(content)
        if number == self._number and memory_id not in self._vectors:
            encoded = content[_SAVED.size :]
            self._vectors[memory_id] = (version, decode_vectors(encoded), count_pictures(encoded))

    # ---------------------------------------------------------------- what is to be written

    def prepare(self) -> Prepared:
        """All records with their new vectors, sealed for the user's next generation, and opened again to see that they
        are what the store will have to open. The vectors must be there."""
        if self._prepared is None:
            sealer, user = self._vault.sealer, self.unlocked
            moved = replace(user, embedder_no=self._number)
            rows = []
            for memory_id, row in self._rows.items():
                _, vectors, pictures = self._vectors[memory_id]
                rows.append(sealer.move(user, row, vectors=vectors, pictures=pictures, embedder_no=self._number))
                opened, its_pictures = sealer.open_vectors(rows[-1], user=moved)
                if opened.tobytes() != vectors.tobytes() or its_pictures != pictures:
                    raise StoreDamagedError("vectors that were just sealed open as other ones")
            self._prepared = Prepared(
                rows=rows,
                were=[row.vector_version for row in self._rows.values()],
                added=[sealer.element(row, keys=user.keys) for row in rows],
                removed=[self._elements[memory_id] for memory_id in self._rows],
            )
        return self._prepared

    def saved(self, user: UnlockedUser, rows: Sequence[RecordRow]) -> list[ItemRow]:
        """The items, for the user's next generation, that keep the vectors of these records; not of one whose text has
        changed since."""
        items = []
        for row in rows:
            version, vectors, pictures = self._vectors.get(row.memory_id, _NO_VECTORS)
            if vectors is None or version != row.text_version:
                continue
            content = _SAVED.pack(self._number, version) + encode_vectors(vectors, pictures=pictures)
            name = row.memory_id.hex()
            if len(name) + len(content) <= MAX_ITEM_BYTES:  # Larger ones are embedded anew, if it comes to that.
                items.append(put(self._vault, user, kind=ItemKind.VECTORS, name=name, content=content)[0])
        return items


def _records(connection: Connection, user: UnlockedUser, *, after: int) -> Iterator[list[RecordRow]]:
    """What changed; at first everything, some at a time because of the content that is not kept."""
    if after:
        yield tables.read_records(connection, user.uref, after=after)
        return
    memory_ids = tables.read_record_ids(connection, user.uref)
    for start in range(0, len(memory_ids), _ROWS_AT_ONCE):
        some = tables.read_records_by_id(connection, user.uref, memory_ids[start : start + _ROWS_AT_ONCE])
        yield sorted(some, key=lambda row: row.seq)


def _sealed_items(connection: Connection, user: UnlockedUser, *, after: int) -> Iterator[list[ItemRow]]:
    if after:
        yield tables.read_items(connection, user.uref, after=after)
        return
    found = tables.read_item_ids(connection, user.uref)
    for kind in {item.kind for item in found}:
        item_ids = [item.item_id for item in found if item.kind == kind]
        for start in range(0, len(item_ids), _ROWS_AT_ONCE):
            some = item_ids[start : start + _ROWS_AT_ONCE]
            yield tables.read_items_by_id(connection, user.uref, kind=kind, item_ids=some)
