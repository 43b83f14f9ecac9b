"""Between the rows and what they mean: the place that seals, opens and holds the store's invariants.

1. A user's rows open with that user's data key, in that user's place, or not at all. There is no other check of whose
   a row is, so none can be forgotten.
2. What was read of a user is exactly what was written: the multiset hash over the rows equals the one in the user's
   sealed manifest, or nothing of it is used.
3. The users of a bucket are exactly those that were written, manifest by manifest (`memlayer.directory`). So a user's
   row that is missing, older or added is an error, and only a user who is absent from an intact bucket is a new one.
4. The buckets that there are, are exactly those that were ever written, and none is older than the rollback guard saw.
5. A write changes the rows, the user's manifest and the bucket in one transaction, and each change says how many rows
   it must touch.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from memlayer import tables
from memlayer.directory import Directory, Write
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.envelope import Field, Place, pad, tag, unpad
from memlayer.errors import FormatTooNewError, StoreDamagedError
from memlayer.manifest import BUCKETS, UserManifest, bucket_of, record_element
from memlayer.payload import decode_turn, decode_vectors, encode_turn, encode_vectors
from memlayer.tables import EmbedderRow, RecordRow, UserRow

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from sqlalchemy.engine import Connection

    from memlayer.database import Database
    from memlayer.guard import FileGuard
    from memlayer.keys import StoreKeys, UserKeys
    from memlayer.records import Memory

__all__ = ["OpenedRecord", "UnlockedUser", "Vault"]

EMBEDDER_NO = 1
"""The first embedder of a store; another one gets the next number when the store is embedded anew."""

# A few kilobytes each; whoever is not among them costs some 50 us more.
_UNLOCKED_USERS = 1024

_RECORDS_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlockedUser:
    """One user as the store had it at one moment.

    Attributes:
        uref: 16 bytes.
        row: as it stands in the store; for a user who has nothing yet, what will be inserted, without a manifest.
        keys: opened with the store's.
        manifest: what the rows must add up to.
    """

    uref: bytes
    row: UserRow
    keys: UserKeys
    manifest: UserManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedRecord:
    """One record, opened.

    Attributes:
        memory_id: 16 bytes.
        seq: its insertion number.
        element: it in the user's multiset hash.
        memory: what was remembered.
        own_id: the caller's id of it, or None.
        vectors: `(parts, dimensions)` float32, unit length.
    """

    memory_id: bytes
    seq: int
    element: int
    memory: Memory
    own_id: str | None
    vectors: NDArray[np.float32]


class Vault:
    """Seals and opens the rows of one store.

    Args:
        database: where the rows are.
        keys: the store's, unlocked.
        guard: notified of each commit; None for a store that is only read.

    Attributes:
        directory: which users there are.
    """

    def __init__(self, database: Database, *, keys: StoreKeys, guard: FileGuard | None) -> None:
        self._database = database
        self._keys = keys
        self._guard = guard
        self._identities: dict[int, bytes] = {}
        self.directory = Directory(database, keys=keys)
        # HKDF for a user costs more than all the rest of opening one; the sealed data key says whether it is still it.
        self._unlocked: dict[bytes, tuple[bytes, UserKeys]] = {}

    @property
    def store_id(self) -> bytes:
        """16 random bytes that name the store."""
        return self._keys.store_id

    # ---------------------------------------------------------------- the store as a whole

    def seal_embedder(self, identity: EmbedderIdentity, *, number: int) -> EmbedderRow:
        """The row that records the embedder of the store."""
        sealed = self._keys.meta.seal(pad(identity.to_json()), place=self._embedder_place(number))
        return EmbedderRow(number, sealed)

    def read_embedder(self, connection: Connection) -> EmbedderIdentity:
        """The identity of the embedder that the store was written with; vectors of it can be opened from then on."""
        identities = {}
        for row in tables.read_embedders(connection):
            opened = unpad(self._keys.meta.open(row.sealed, place=self._embedder_place(row.embedder_no)))
            identities[row.embedder_no] = EmbedderIdentity.model_validate_json(opened)
        if EMBEDDER_NO not in identities:
            raise StoreDamagedError("the store does not say which embedder it was written with")
        self._identities = {number: identity.digest() for number, identity in identities.items()}
        return identities[EMBEDDER_NO]

    def verify_users(self, connection: Connection) -> tuple[int, int]:
        """Opens every memory of every user; how many users and memories there are."""
        users = memories = 0
        records = dict(tables.count_records(connection))
        items = dict(tables.count_items(connection))
        for bucket in range(BUCKETS):
            for row in self.directory.users_in(connection, bucket):
                user = self._unlock_row(row)
                if self._keys.uref(self._open_profile(user)) != row.uref:
                    raise StoreDamagedError("a user's row belongs to another user")
                found = sum(1 for _ in self.stream(connection, user))
                if (found, records.pop(row.uref, 0), items.pop(row.uref, 0)) != (
                    user.manifest.records, user.manifest.records, user.manifest.items
                ):  # fmt: skip
                    self.refuse_rows()
                users += 1
                memories += found
        if records or items:
            raise StoreDamagedError("there are memories whose user is gone")
        return users, memories

    # ---------------------------------------------------------------- users

    def seals(self, connection: Connection, user_id: str) -> tuple[object, object]:
        """What stands for the user's present state, one short query: equal to the last one seen means that nothing
        was written."""
        uref = self._keys.uref(user_id)
        return tables.read_seals(connection, uref, bucket=bucket_of(uref))

    def unlock(self, connection: Connection, user_id: str) -> UnlockedUser | None:
        """The user, from an intact bucket; None for one who has nothing."""
        uref = self._keys.uref(user_id)
        own = next((row for row in self.directory.users_in(connection, bucket_of(uref)) if row.uref == uref), None)
        if own is None:
            return None
        unlocked = self._unlock_row(own)
        if self._open_profile(unlocked) != user_id:
            raise StoreDamagedError("a user's row belongs to another user")
        return unlocked

    def new_user(self, user_id: str) -> UnlockedUser:
        """A user who has nothing yet, with a new data key; nothing is written before the first memory is."""
        uref = self._keys.uref(user_id)
        keys, sealed = self._keys.new_user(uref=uref)
        profile = keys.profile.seal(
            pad(json.dumps({"user": user_id}, ensure_ascii=False).encode()),
            place=self._place(Field.PROFILE, uref, keys),
        )
        row = UserRow(uref, self._keys.epoch, keys.epoch, keys.commitment, 0, sealed, b"", profile)
        return UnlockedUser(uref=uref, row=row, keys=keys, manifest=UserManifest(seals=1))

    @contextmanager
    def write(self) -> Iterator[Write]:
        """A transaction; when it has been committed, the rollback guard is told."""
        with self._database.write() as connection:
            write = Write(connection)
            yield write
        self.directory.committed(write)
        if self._guard is not None:
            for bucket, note in write.notes.items():
                self._guard.note(bucket, note)

    def change(
        self, write: Write, user: UnlockedUser, *, insert: Sequence[RecordRow] = (), update: Sequence[RecordRow] = (),
        delete: Sequence[bytes] = (), were: Sequence[int] = (),
    ) -> UnlockedUser:  # fmt: skip
        """One generation of one user's records; the user as it is afterwards.

        Args:
            insert: new records, sealed for the next generation.
            update: records as they are now, sealed for the next generation.
            delete: ids of records that go.
            were: the elements of all updated and deleted records as they were, verified.
        """
        added = [self.element(row, keys=user.keys) for row in (*insert, *update)]
        # Each row has at most two new seals, and the manifest one.
        manifest = user.manifest.changed(
            added=added, removed=list(were), seals=2 * len(added) + 1, appended=len(insert)
        )
        place = self._place(Field.MANIFEST, user.uref, user.keys, version=manifest.generation)
        sealed = user.keys.manifest.seal(manifest.encode(), place=place)
        before = user.row
        after = before._replace(generation=manifest.generation, manifest=sealed)
        if before.manifest:
            tables.update_user(write.connection, after, generation=before.generation)
            self.directory.change_user(write, added=after, removed=before)
        else:
            tables.insert_user(write.connection, after)
            self.directory.change_user(write, added=after, removed=None)
        if insert:
            tables.insert_records(write.connection, insert)
        for row in update:
            tables.update_record(write.connection, row)
        tables.delete_records(write.connection, user.uref, delete)
        return replace(user, row=after, manifest=manifest)

    def erase(self, write: Write, user: UnlockedUser) -> None:
        """Deletes all that a user has, the sealed data key included."""
        tables.delete_all_records(
            write.connection, user.uref, count=user.manifest.records, item_count=user.manifest.items
        )
        tables.delete_user(write.connection, user.uref)
        self.directory.change_user(write, added=None, removed=user.row)
        self._unlocked.pop(user.uref, None)

    # ---------------------------------------------------------------- records

    def read(self, connection: Connection, user: UnlockedUser, *, after: int) -> list[OpenedRecord]:
        """The records that were changed after a generation; each authentic, whether they are all is for the caller
        to add up (see `UserManifest.holds`)."""
        rows = tables.read_records(connection, user.uref, after=after)
        return [self.open_record(row, user=user) for row in rows]

    def stream(self, connection: Connection, user: UnlockedUser) -> Iterator[OpenedRecord]:
        """All records, oldest first, a portion in memory at a time. Only when it ends without an error were they
        exactly the ones that were written."""
        memory_ids = self.ids(connection, user)
        total = 0
        for start in range(0, len(memory_ids), _RECORDS_AT_ONCE):
            portion = memory_ids[start : start + _RECORDS_AT_ONCE]
            rows = tables.read_records_by_id(connection, user.uref, portion)
            for row in sorted(rows, key=lambda row: row.seq):
                opened = self.open_record(row, user=user)
                total += opened.element
                yield opened
        if not user.manifest.holds(records=len(memory_ids), total=total):
            self.refuse_rows()

    def ids(self, connection: Connection, user: UnlockedUser) -> list[bytes]:
        """The ids of the records that there are, oldest first; not authenticated by itself."""
        return tables.read_record_ids(connection, user.uref)

    def row(self, connection: Connection, user: UnlockedUser, memory_id: bytes, *, element: int) -> RecordRow:
        """The sealed row of a record whose element is known from a verified index."""
        rows = [row for row in tables.read_records_by_id(connection, user.uref, [memory_id])
                if row.memory_id == memory_id and self.element(row, keys=user.keys) == element]  # fmt: skip
        if len(rows) != 1:
            self.refuse_rows()
        return rows[0]

    @staticmethod
    def refuse_rows() -> NoReturn:
        """Raises: the rows do not add up to the manifest."""
        raise StoreDamagedError(
            "a user's memories are not those that were written: some were removed, added, changed or replaced by "
            "older ones"
        )

    def seal_record(
        self, user: UnlockedUser, *, memory_id: bytes, seq: int, memory: Memory, own_id: str | None,
        vectors: NDArray[np.float32],
    ) -> RecordRow:  # fmt: skip
        """A record of the user's next generation."""
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
            embedder_no=EMBEDDER_NO,
            text=user.keys.text.seal(encode_turn(memory, own_id=own_id), place=text_place),
            vector=user.keys.vector.seal(
                encode_vectors(vectors), place=self._vector_place(user, memory_id, version, EMBEDDER_NO)
            ),
        )

    def reseal(
        self, user: UnlockedUser, row: RecordRow, *, memory: Memory, own_id: str | None,
        vectors: NDArray[np.float32] | None,
    ) -> RecordRow:  # fmt: skip
        """The record with another text field, and another vector field unless `vectors` is None."""
        version = user.manifest.generation + 1
        place = self._place(Field.TEXT, user.uref, user.keys, record=row.memory_id, version=version)
        text = user.keys.text.seal(encode_turn(memory, own_id=own_id), place=place)
        row = row._replace(changed=version, text_version=version, text=text)
        if vectors is None:
            return row
        vector_place = self._vector_place(user, row.memory_id, version, EMBEDDER_NO)
        vector = user.keys.vector.seal(encode_vectors(vectors), place=vector_place)
        return row._replace(vector_version=version, embedder_no=EMBEDDER_NO, vector=vector)

    def open_record(self, row: RecordRow, *, user: UnlockedUser) -> OpenedRecord:
        """The record, if it is this user's and as it was sealed."""
        binding = self._identities.get(row.embedder_no)
        if binding is None:
            raise StoreDamagedError("a memory names an embedder that the store does not know")
        keys = user.keys
        text = keys.text.open(
            row.text, place=self._place(Field.TEXT, user.uref, keys, record=row.memory_id, version=row.text_version)
        )
        vector = keys.vector.open(
            row.vector, place=self._vector_place(user, row.memory_id, row.vector_version, row.embedder_no)
        )
        memory, own_id = decode_turn(text, memory_id=row.memory_id)
        if own_id is not None and keys.memory_id(own_id) != row.memory_id:
            raise StoreDamagedError("a memory stands under another id than its own")
        return OpenedRecord(
            memory_id=row.memory_id,
            seq=row.seq,
            element=self.element(row, keys=keys),
            memory=memory,
            own_id=own_id,
            vectors=decode_vectors(vector),
        )

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

    # ---------------------------------------------------------------- inside

    def _unlock_row(self, row: UserRow) -> UnlockedUser:
        if row.sk_epoch != self._keys.epoch:
            raise StoreDamagedError("a user's row names a store key that the store does not have")
        sealed, keys = self._unlocked.get(row.uref, (b"", None))
        if keys is None or sealed != row.data_key or keys.epoch != row.dek_epoch:
            keys = self._keys.open_user(row.data_key, uref=row.uref, epoch=row.dek_epoch, commitment=row.commitment)
            self._remember_keys(row.uref, row.data_key, keys)
        if keys.commitment != row.commitment:
            raise StoreDamagedError("a user's row is committed to another data key than it holds")
        place = self._place(Field.MANIFEST, row.uref, keys, version=row.generation)
        manifest = UserManifest.decode(keys.manifest.open(row.manifest, place=place))
        if manifest.generation != row.generation:
            raise StoreDamagedError("a user's manifest is of another generation than its row")
        return UnlockedUser(uref=row.uref, row=row, keys=keys, manifest=manifest)

    def _remember_keys(self, uref: bytes, sealed: bytes, keys: UserKeys) -> None:
        if len(self._unlocked) >= _UNLOCKED_USERS:
            # All at once, and as a new dict: other threads may be reading this one.
            self._unlocked = {}
        self._unlocked[uref] = (sealed, keys)

    def _open_profile(self, user: UnlockedUser) -> str:
        opened = user.keys.profile.open(user.row.profile, place=self._place(Field.PROFILE, user.uref, user.keys))
        profile = json.loads(unpad(opened))
        if set(profile) != {"user"}:
            raise FormatTooNewError("a user's profile has fields that this memlayer does not know")
        return str(profile["user"])

    def _place(self, kind: Field, uref: bytes, keys: UserKeys, *, record: bytes = bytes(16), version: int = 0) -> Place:
        return Place(
            field=kind, store_id=self._keys.store_id, uref=uref, record=record, epoch=keys.epoch, version=version
        )

    def _vector_place(self, user: UnlockedUser, memory_id: bytes, version: int, embedder_no: int) -> Place:
        return Place(
            field=Field.VECTOR,
            store_id=self._keys.store_id,
            uref=user.uref,
            record=memory_id,
            epoch=user.keys.epoch,
            version=version,
            binding=self._identities[embedder_no],
        )

    def _embedder_place(self, number: int) -> Place:
        return Place(field=Field.EMBEDDER, store_id=self._keys.store_id, epoch=self._keys.epoch, version=number)
