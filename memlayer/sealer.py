"""From what was remembered to sealed rows, and back: records and items of one user at a time, without a database."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from memlayer.envelope import Field, Place, pad, tag, unpad
from memlayer.errors import StoreDamagedError
from memlayer.manifest import UserManifest, item_element, record_element
from memlayer.payload import count_pictures, decode_turn, decode_vectors, encode_turn, encode_vectors
from memlayer.rows import IMAGE_KIND, ItemRow, RecordRow, UserRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from memlayer.keys import UserKeys
    from memlayer.records import Memory

__all__ = ["EMBEDDER_NO", "ItemKind", "OpenedItem", "OpenedRecord", "Sealer", "UnlockedUser"]

EMBEDDER_NO = 1
"""The first embedder of a store; another one gets the next number when the store is embedded anew."""


class ItemKind(IntEnum):
    """What an item is. The numbers are part of the format: never reuse one.

    `VECTORS` are those of a memory in the space of the embedder that its user is being moved to; see
    `memlayer.reembedding`. `IMAGE` is the image of a memory, which says its digest; see `Sealer.item_element`.
    """

    LEDGER = 1
    TOOL_FILE = 2
    FRAMEWORK = 3
    VECTORS = 4
    FACTS = 5
    IMAGE = IMAGE_KIND


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlockedUser:
    """One user as the store had it at one moment.

    Attributes:
        uref: 16 bytes.
        row: as it stands in the store; for a user who has nothing yet, what will be inserted, without a manifest.
        keys: opened with the store's.
        manifest: what the rows must add up to.
        embedder_no: the number of the embedder that all the user's vectors are of, from the sealed profile.
    """

    uref: bytes
    row: UserRow
    keys: UserKeys
    manifest: UserManifest
    embedder_no: int = EMBEDDER_NO


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRecord:
    """One record, opened.

    Attributes:
        memory_id: 16 bytes.
        seq: its insertion number.
        element: it in the user's multiset hash.
        memory: what was remembered.
        own_id: the caller's id of it, or None.
        vectors: `(n, dimensions)` float32, unit length: those of the parts of the text, then those of the image.
        pictures: how many of them are of the image: 0 or 1.
    """

    memory_id: bytes
    seq: int
    element: int
    memory: Memory
    own_id: str | None
    vectors: NDArray[np.float32]
    pictures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedItem:
    """One item, opened.

    Attributes:
        kind: what it is; see `memlayer.items`.
        item_id: 16 bytes.
        version: the generation that wrote it.
        element: it in the user's multiset hash.
        content: what was sealed, without the padding; of an image nothing, until it is asked for.
    """

    kind: int
    item_id: bytes
    version: int
    element: int
    content: bytes


class Sealer:
    """Seals and opens the rows of one store's users.

    Args:
        store_id: the store's.
        identities: the digests of the embedders that vectors are bound to, by number; filled when the store is opened.
    """

    def __init__(self, store_id: bytes, *, identities: dict[int, bytes]) -> None:
        self._store_id = store_id
        self._identities = identities

    def seal_record(
        self, user: UnlockedUser, *, memory_id: bytes, seq: int, memory: Memory, own_id: str | None,
        vectors: NDArray[np.float32], pictures: int = 0,
    ) -> RecordRow:  # fmt: skip
        """A record of the user's next generation; the last `pictures` of the vectors are of its image."""
        version = user.manifest.generation + 1
        text_place = self._place(Field.TEXT, user.uref, user.keys, record=memory_id, version=version)
        return RecordRow(
            uref=user.uref,
            memory_id=memory_id,
            seq=seq,
            dek_epoch=user.keys.epoch,
            changed=version,
            text_version=version,
            vector_version=version,
            embedder_no=user.embedder_no,
            text=user.keys.text.seal(encode_turn(memory, own_id=own_id), place=text_place),
            vector=user.keys.vector.seal(
                encode_vectors(vectors, pictures=pictures),
                place=self._vector_place(user, memory_id, version, user.embedder_no),
            ),
        )

    def reseal(
        self, user: UnlockedUser, row: RecordRow, *, memory: Memory, own_id: str | None,
        vectors: NDArray[np.float32] | None, pictures: int = 0,
    ) -> RecordRow:  # fmt: skip
        """The record with another text field, and another vector field unless `vectors` is None."""
        version = user.manifest.generation + 1
        place = self._place(Field.TEXT, user.uref, user.keys, record=row.memory_id, version=version)
        text = user.keys.text.seal(encode_turn(memory, own_id=own_id), place=place)
        row = row._replace(changed=version, text_version=version, text=text)
        if vectors is None:
            return row
        vector_place = self._vector_place(user, row.memory_id, version, user.embedder_no)
        vector = user.keys.vector.seal(encode_vectors(vectors, pictures=pictures), place=vector_place)
        return row._replace(vector_version=version, embedder_no=user.embedder_no, vector=vector)

    def move(
        self, user: UnlockedUser, row: RecordRow, *, vectors: NDArray[np.float32], embedder_no: int, pictures: int = 0
    ) -> RecordRow:
        """The record with its vectors of another embedder; the text field stays as it is."""
        version = user.manifest.generation + 1
        place = self._vector_place(user, row.memory_id, version, embedder_no)
        vector = user.keys.vector.seal(encode_vectors(vectors, pictures=pictures), place=place)
        return row._replace(changed=version, vector_version=version, embedder_no=embedder_no, vector=vector)

    def open_record(self, row: RecordRow, *, user: UnlockedUser) -> OpenedRecord:
        """The record, if it is this user's and as it was sealed."""
        keys = user.keys
        text = keys.text.open(
            row.text, place=self._place(Field.TEXT, user.uref, keys, record=row.memory_id, version=row.text_version)
        )
        vectors, pictures = self.open_vectors(row, user=user)
        memory, own_id = decode_turn(text, memory_id=row.memory_id)
        if own_id is not None and keys.memory_id(own_id) != row.memory_id:
            raise StoreDamagedError("a memory stands under another id than its own")
        return OpenedRecord(
            memory_id=row.memory_id,
            seq=row.seq,
            element=self.element(row, keys=keys),
            memory=memory,
            own_id=own_id,
            vectors=vectors,
            pictures=pictures,
        )

    def open_vectors(self, row: RecordRow, *, user: UnlockedUser) -> tuple[NDArray[np.float32], int]:
        """The vectors of a record, if it is this user's, in the user's space, and as it was sealed; and how many of
        them, at the end, are of its image."""
        if row.embedder_no != user.embedder_no:
            # One space a user, or nothing: vectors of two embedders are never in one index.
            raise StoreDamagedError("a memory names another embedder than its user does")
        place = self._vector_place(user, row.memory_id, row.vector_version, row.embedder_no)
        opened = user.keys.vector.open(row.vector, place=place)
        return decode_vectors(opened), count_pictures(opened)

    def element(self, row: RecordRow, *, keys: UserKeys) -> int:
        """The record in its user's multiset hash: all of its clear columns, and both seals."""
        if row.changed != max(row.text_version, row.vector_version) or row.dek_epoch != keys.epoch:
            raise StoreDamagedError("a memory's versions do not fit together")
        return record_element(
            keys.set_key,
            memory_id=row.memory_id,
            seq=row.seq,
            epoch=row.dek_epoch,
            text_version=row.text_version,
            vector_version=row.vector_version,
            embedder_no=row.embedder_no,
            text_tag=tag(row.text),
            vector_tag=tag(row.vector),
        )

    def seal_item(self, user: UnlockedUser, *, kind: int, item_id: bytes, content: bytes) -> ItemRow:
        """An item of the user's next generation."""
        version = user.manifest.generation + 1
        place = self._item_place(user.uref, user.keys, kind=kind, item_id=item_id, version=version)
        return ItemRow(
            user.uref, kind, item_id, user.keys.epoch, version, user.keys.item.seal(pad(content), place=place)
        )

    def open_item(self, row: ItemRow, *, user: UnlockedUser) -> OpenedItem:
        """The item, if it is this user's and as it was sealed."""
        place = self._item_place(user.uref, user.keys, kind=row.kind, item_id=row.item_id, version=row.version)
        return OpenedItem(
            kind=row.kind,
            item_id=row.item_id,
            version=row.version,
            element=self.item_element(row, keys=user.keys),
            content=unpad(user.keys.item.open(row.sealed, place=place)),
        )

    def note_item(self, row: ItemRow, *, user: UnlockedUser) -> OpenedItem:
        """An image, unopened: it can be counted, and dropped."""
        element = self.item_element(row, keys=user.keys)
        return OpenedItem(kind=row.kind, item_id=row.item_id, version=row.version, element=element, content=b"")

    def item_element(self, row: ItemRow, *, keys: UserKeys) -> int:
        """The item in its user's multiset hash: all of its clear columns, and its seal.

        An image's seal is left out: the tag is at the end of some megabytes, and all images of a user would have to be
        read to count them. What pins the content is the digest in the memory, whose own seal is in the hash.
        """
        if row.dek_epoch != keys.epoch:
            raise StoreDamagedError("an item names a key that its user does not have")
        return item_element(
            keys.set_key,
            kind=row.kind,
            item_id=row.item_id,
            epoch=row.dek_epoch,
            version=row.version,
            item_tag=bytes(16) if row.kind == ItemKind.IMAGE else tag(row.sealed),
        )

    def _item_place(self, uref: bytes, keys: UserKeys, *, kind: int, item_id: bytes, version: int) -> Place:
        # The kind is bound too: a file of a tool is no entry of the ledger.
        binding = kind.to_bytes(32)
        return Place(
            field=Field.ITEM, store_id=self._store_id, uref=uref, record=item_id, epoch=keys.epoch, version=version,
            binding=binding,
        )  # fmt: skip

    def _place(self, kind: Field, uref: bytes, keys: UserKeys, *, record: bytes = bytes(16), version: int = 0) -> Place:
        return Place(field=kind, store_id=self._store_id, uref=uref, record=record, epoch=keys.epoch, version=version)

    def _vector_place(self, user: UnlockedUser, memory_id: bytes, version: int, embedder_no: int) -> Place:
        return Place(
            field=Field.VECTOR,
            store_id=self._store_id,
            uref=user.uref,
            record=memory_id,
            epoch=user.keys.epoch,
            version=version,
            binding=self._identities[embedder_no],
        )
