"""Between the rows and what they mean: the place that seals, opens and holds the store's invariants.

1. A user's rows open with that user's data key, in that user's place, or not at all. There is no other check of whose
   a row is, so none can be forgotten.
2. What was read of a user is exactly what was written: the multiset hash over the rows equals the one in the user's
   sealed manifest, or nothing of it is used.
3. The users of a bucket are exactly those that were written, manifest by manifest (`memlayer.directory`). So a user's
   row that is missing, older or added is an error, and only a user who is absent from an intact bucket is a new one.
4. The buckets that there are, are exactly those that were ever written, and none is older than the rollback guard saw.
5. All vectors of one user are of the one embedder that the user's sealed profile names: a record that says another one
   does not open.
6. A write changes the rows, the user's manifest and the bucket in one transaction, and each change says how many rows
   it must touch.
"""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from memlayer import tables
from memlayer.directory import Directory
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.envelope import Field, Place, pad, unpad
from memlayer.errors import FormatTooNewError, StoreDamagedError
from memlayer.images import noted_images, open_image
from memlayer.lineage import Lineage
from memlayer.manifest import BUCKETS, UserManifest, bucket_of
from memlayer.rows import EmbedderRow, ItemRow, RecordRow, UserRow
from memlayer.sealer import EMBEDDER_NO, ItemKind, OpenedItem, OpenedRecord, Sealer, UnlockedUser
from memlayer.unlinking import round_of, unlink
from memlayer.writes import Change, ItemChanges, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine import Connection

    from memlayer.database import Database
    from memlayer.guard import FileGuard
    from memlayer.keys import StoreKeys, UserKeys

__all__ = ["EMBEDDER_NO", "OpenedItem", "OpenedRecord", "UnlockedUser", "Vault"]

# A few kilobytes each; whoever is not among them costs some 50 us more.
_UNLOCKED_USERS = 1024

_RECORDS_AT_ONCE = 500


class Vault:
    """Seals and opens the rows of one store.

    Args:
        database: where the rows are.
        keys: the store's, unlocked.
        guard: notified of each commit; None for a store that is only read.

    Attributes:
        directory: which users there are.
        sealer: seals and opens their rows.
        own: the digest of the embedder that this process writes with, if it has one: what a new user begins with.
    """

    def __init__(self, database: Database, *, keys: StoreKeys, guard: FileGuard | None) -> None:
        self._database = database
        self._keys = keys
        self._guard = guard
        # Numbers are never used again, so what is known of one stays true.
        self._identities: dict[int, EmbedderIdentity] = {}
        self._digests: dict[int, bytes] = {}
        self._embedder_rows: list[EmbedderRow] = []
        self.own: bytes | None = None
        self.sealer = Sealer(keys.store_id, identities=self._digests)
        self.directory = Directory(database, keys=keys)
        # HKDF for a user costs more than all the rest of opening one; the sealed data key says whether it is still it.
        self._unlocked: dict[bytes, tuple[bytes, UserKeys]] = {}
        self._takers: list[Callable[[Write], None]] = []
        self._watchers: dict[bytes, tuple[Callable[[], None], ...]] = {}
        self._watching = threading.Lock()

    @property
    def store_id(self) -> bytes:
        """16 random bytes that name the store."""
        return self._keys.store_id

    # ---------------------------------------------------------------- the store as a whole

    def seal_embedder(self, identity: EmbedderIdentity, *, number: int) -> EmbedderRow:
        """The row that records the embedder of the store."""
        sealed = self._keys.meta.seal(pad(identity.to_json()), place=self._embedder_place(number))
        return EmbedderRow(number, sealed)

    def read_embedders(self, connection: Connection) -> dict[int, EmbedderIdentity]:
        """The embedders of the store by number; vectors of them can be opened from then on. The highest is the one that
        new memories are for; lower ones are there while a move to it is not finished."""
        rows = tables.read_embedders(connection)
        if not rows:
            raise StoreDamagedError("the store does not say which embedder it was written with")
        if rows != self._embedder_rows:
            identities = {}
            for row in rows:
                opened = unpad(self._keys.meta.open(row.sealed, place=self._embedder_place(row.embedder_no)))
                identities[row.embedder_no] = EmbedderIdentity.model_validate_json(opened)
            self.directory.check_slots(connection)
            self._identities.update(identities)
            self._digests.update({number: identity.digest() for number, identity in identities.items()})
            self._embedder_rows = rows
        return {row.embedder_no: self._identities[row.embedder_no] for row in rows}

    def identity(self, number: int) -> EmbedderIdentity:
        """The embedder with this number, which a user's row was seen with."""
        return self._identities[number]

    def digest(self, number: int) -> bytes:
        """The digest of its identity: vectors of equal ones can be compared."""
        return self._digests[number]

    @property
    def number_for_new(self) -> int:
        """The embedder of a user who has nothing yet, as far as this process has seen: its own, if the store still has
        that, else the newest."""
        numbers = [row.embedder_no for row in self._embedder_rows]
        return max([number for number in numbers if self._digests[number] == self.own] or numbers)

    def verify_users(self, connection: Connection) -> tuple[int, int]:
        """Opens every memory and every image of every user; how many users and memories there are."""
        users = memories = 0
        records = dict(tables.count_records(connection))
        items = dict(tables.count_items(connection))
        embedders = self.read_embedders(connection)
        for bucket in range(BUCKETS):
            for _, user in self.users_in(connection, bucket):
                if user.embedder_no not in embedders:
                    raise StoreDamagedError("a user names an embedder that the store does not have any more")
                found = images = 0
                for record in self.stream(connection, user):
                    found += 1
                    images += self.image(connection, user, record) is not None
                if images != sum(kind == ItemKind.IMAGE for kind, _ in self.item_ids(connection, user)):
                    self.refuse_rows()
                if (found, records.pop(user.uref, 0), items.pop(user.uref, 0)) != (
                    user.manifest.records, user.manifest.records, user.manifest.items
                ):  # fmt: skip
                    self.refuse_rows()
                users += 1
                memories += found
        if records or items:
            raise StoreDamagedError("there are memories whose user is gone")
        return users, memories

    # ---------------------------------------------------------------- users

    def uref(self, user_id: str) -> bytes:
        """What stands for the user in the rows."""
        return self._keys.uref(user_id)

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
        found, unlocked = self._unlock_row(connection, own)
        if found != user_id:
            raise StoreDamagedError("a user's row belongs to another user")
        return unlocked

    def users_in(self, connection: Connection, bucket: int) -> list[tuple[str, UnlockedUser]]:
        """The users of an intact bucket, each with the user id."""
        found = [self._unlock_row(connection, row) for row in self.directory.users_in(connection, bucket)]
        if any(self._keys.uref(user_id) != user.uref for user_id, user in found):
            raise StoreDamagedError("a user's row belongs to another user")
        return found

    def new_user(self, connection: Connection, user_id: str) -> UnlockedUser:
        """A user who has nothing yet, with a new data key; nothing is written before the first memory is."""
        self.read_embedders(connection)
        number = self.number_for_new
        uref = self._keys.uref(user_id)
        keys, sealed = self._keys.new_user(uref=uref)
        profile = self._seal_profile(user_id, uref=uref, keys=keys, embedder_no=number)
        row = UserRow(uref, self._keys.epoch, keys.epoch, keys.commitment, 0, sealed, b"", profile)
        return UnlockedUser(uref=uref, row=row, keys=keys, manifest=UserManifest(seals=1), embedder_no=number)

    @contextmanager
    def write(self) -> Iterator[Write]:
        """A transaction; when it has been committed, the rollback guard is told, and whoever takes what was written."""
        with self._database.write() as connection:
            write = Write(connection)
            yield write
        self.directory.committed(write)
        if self._guard is not None:
            for bucket, note in write.notes.items():
                self._guard.note(bucket, note)
        for take in self._takers:
            take(write)
        for uref in write.grown & self._watchers.keys():
            for told in self._watchers.get(uref, ()):
                told()

    def taken_by(self, take: Callable[[Write], None]) -> None:
        """Has `take` called with each committed transaction of this process, in the thread that wrote. It must not
        raise: what was written stays written."""
        self._takers.append(take)

    def watch(self, user_id: str, told: Callable[[], None]) -> Callable[[], None]:
        """Has `told` called after each write of this process that adds memories of the user, in the thread that wrote
        and without a lock: it must be quick. Gives what ends it."""
        uref = self._keys.uref(user_id)

        def end() -> None:
            with self._watching:
                left = tuple(one for one in self._watchers.pop(uref, ()) if one is not told)
                if left:
                    self._watchers[uref] = left

        with self._watching:
            self._watchers[uref] = (*self._watchers.get(uref, ()), told)
        return end

    def change(
        self, write: Write, user: UnlockedUser, *, insert: Sequence[RecordRow] = (), update: Sequence[RecordRow] = (),
        delete: Sequence[bytes] = (), were: Sequence[int] = (), items: ItemChanges | None = None,
    ) -> UnlockedUser:  # fmt: skip
        """One generation of one user's records and items; the user as it is afterwards.

        Args:
            insert: new records, sealed for the next generation.
            update: records as they are now, sealed for the next generation.
            delete: ids of records that go.
            were: the elements of all updated and deleted records as they were, verified.
            items: what changes of the items. The images of deleted records go with them, and vectors that a move had
                saved of updated and deleted ones.

        Facts that were written from a deleted record, or from one that says something else now, are deleted too.
        """
        items = items or ItemChanges()
        unlinked = unlink(self.sealer, write.connection, user, delete=delete, update=update)
        if unlinked is not None:
            update = [row for row in update if row.memory_id not in unlinked.facts]
            delete, were = [*delete, *unlinked.facts], [*were, *unlinked.were]
            items = replace(
                items,
                put=[*items.put, *unlinked.put],
                replaced=[*items.replaced, *unlinked.replaced],
                drop=[*items.drop, *unlinked.drop],
            )
        gone = self.saved_vectors(write.connection, user, [*delete, *(row.memory_id for row in update)])
        gone += noted_images(self.sealer, write.connection, user, delete)
        if gone:
            items = replace(items, drop=[*items.drop, *gone])
        added = [self.sealer.element(row, keys=user.keys) for row in (*insert, *update)]
        # Each record has at most two new seals, an item one, and the manifest one.
        manifest = user.manifest.changed(
            added=added,
            removed=list(were),
            seals=2 * len(added) + len(items.put) + 1,
            appended=len(insert),
            items_added=[self.sealer.item_element(row, keys=user.keys) for row in items.put],
            items_removed=[item.element for item in (*items.replaced, *items.drop)],
        )
        changed = self._write_user(write, user, manifest=manifest)
        if insert:
            tables.insert_records(write.connection, insert)
            write.grown.add(user.uref)
        for row in update:
            tables.update_record(write.connection, row)
        tables.delete_records(write.connection, user.uref, delete)
        items.write(write.connection, user.uref)
        write.changes.append(Change(before=user, after=changed, rows=[*insert, *update], deleted=delete, items=items))
        return changed

    def move(
        self, write: Write, user: UnlockedUser, *, rows: Sequence[RecordRow], were: Sequence[int],
        added: Sequence[int], removed: Sequence[int], embedder_no: int,
    ) -> UnlockedUser:  # fmt: skip
        """One generation in which all of a user's vectors become those of another embedder.

        Args:
            rows: all records as they are now, sealed for the next generation with `embedder_no`. Their text fields stay
                as they are and are not looked at.
            were: the versions of their vectors until now.
            added: the elements of the records as they are now.
            removed: the elements of the records as they were, verified.
        """
        user_id = self._open_profile(user.row, user.keys)[0]
        profile = self._seal_profile(user_id, uref=user.uref, keys=user.keys, embedder_no=embedder_no)
        manifest = user.manifest.changed(added=list(added), removed=list(removed), seals=len(rows) + 2)
        moved = replace(user, row=user.row._replace(profile=profile), embedder_no=embedder_no)
        moved = self._write_user(write, moved, manifest=manifest, before=user.row)
        tables.update_vectors(write.connection, rows, were=were)
        return moved

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
        return [self.sealer.open_record(row, user=user) for row in rows]

    def stream(self, connection: Connection, user: UnlockedUser) -> Iterator[OpenedRecord]:
        """All records, oldest first, a portion in memory at a time. Only when it ends without an error were they
        exactly the ones that were written."""
        memory_ids = self.ids(connection, user)
        total = 0
        for start in range(0, len(memory_ids), _RECORDS_AT_ONCE):
            portion = memory_ids[start : start + _RECORDS_AT_ONCE]
            rows = tables.read_records_by_id(connection, user.uref, portion)
            for row in sorted(rows, key=lambda row: row.seq):
                opened = self.sealer.open_record(row, user=user)
                total += opened.element
                yield opened
        items = self.read_items(connection, user, after=0)
        total += sum(item.element for item in items)
        if not user.manifest.holds(records=len(memory_ids), items=len(items), total=total):
            self.refuse_rows()

    def read_items(self, connection: Connection, user: UnlockedUser, *, after: int) -> list[OpenedItem]:
        """The items that were written after a generation; as `read` has it for records. Images stay unopened."""
        return [self.open_item(row, user=user) for row in tables.read_items(connection, user.uref, after=after)]

    def open_item(self, row: ItemRow, *, user: UnlockedUser) -> OpenedItem:
        """An item; an image stays unopened."""
        if row.kind == ItemKind.IMAGE:
            return self.sealer.note_item(row, user=user)
        return self.sealer.open_item(row, user=user)

    def image(self, connection: Connection, user: UnlockedUser, record: OpenedRecord) -> bytes | None:
        """The image of a memory, or None; see `memlayer.images`."""
        return open_image(self.sealer, connection, user, memory_id=record.memory_id, memory=record.memory)

    def saved_vectors(
        self, connection: Connection, user: UnlockedUser, memory_ids: Sequence[bytes]
    ) -> list[OpenedItem]:
        """The vectors that a move has saved of these memories so far."""
        if not memory_ids or not user.manifest.items:
            return []
        item_ids = [saved_vectors_id(user, memory_id) for memory_id in memory_ids]
        rows = tables.read_items_by_id(connection, user.uref, kind=ItemKind.VECTORS, item_ids=item_ids)
        return [self.sealer.open_item(row, user=user) for row in rows]

    def item_ids(self, connection: Connection, user: UnlockedUser) -> list[tuple[int, bytes]]:
        """The kinds and ids of the items that there are; not authenticated by itself."""
        return [(row.kind, row.item_id) for row in tables.read_item_ids(connection, user.uref)]

    def ids(self, connection: Connection, user: UnlockedUser) -> list[bytes]:
        """The ids of the records that there are, oldest first; not authenticated by itself."""
        return tables.read_record_ids(connection, user.uref)

    def row(self, connection: Connection, user: UnlockedUser, memory_id: bytes, *, element: int) -> RecordRow:
        """The sealed row of a record whose element is known from a verified index."""
        rows = [row for row in tables.read_records_by_id(connection, user.uref, [memory_id])
                if row.memory_id == memory_id and self.sealer.element(row, keys=user.keys) == element]  # fmt: skip
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

    def links(self, connection: Connection, user: UnlockedUser) -> Lineage:
        """Where the user's facts come from; authentic, whether it is all is for the caller to add up."""
        rows = tables.read_items_of_kind(connection, user.uref, kind=ItemKind.FACTS) if user.manifest.items else []
        return Lineage(round_of(self.sealer.open_item(row, user=user)) for row in rows)

    # ---------------------------------------------------------------- inside

    def _unlock_row(self, connection: Connection, row: UserRow) -> tuple[str, UnlockedUser]:
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
        user_id, number = self._open_profile(row, keys)
        if number not in self._identities and number not in self.read_embedders(connection):
            raise StoreDamagedError("a user names an embedder that the store does not know")
        return user_id, UnlockedUser(uref=row.uref, row=row, keys=keys, manifest=manifest, embedder_no=number)

    def _write_user(
        self, write: Write, user: UnlockedUser, *, manifest: UserManifest, before: UserRow | None = None
    ) -> UnlockedUser:
        """Writes the user's row and bucket; `before` is the row as it stands, where more of it changes."""
        place = self._place(Field.MANIFEST, user.uref, user.keys, version=manifest.generation)
        sealed = user.keys.manifest.seal(manifest.encode(), place=place)
        before = before or user.row
        after = user.row._replace(generation=manifest.generation, manifest=sealed)
        if before.manifest:
            tables.update_user(write.connection, after, generation=before.generation)
            self.directory.change_user(write, added=after, removed=before)
        else:
            tables.insert_user(write.connection, after)
            self.directory.change_user(write, added=after, removed=None)
        return replace(user, row=after, manifest=manifest)

    def _remember_keys(self, uref: bytes, sealed: bytes, keys: UserKeys) -> None:
        if len(self._unlocked) >= _UNLOCKED_USERS:
            # All at once, and as a new dict: other threads may be reading this one.
            self._unlocked = {}
        self._unlocked[uref] = (sealed, keys)

    def _seal_profile(self, user_id: str, *, uref: bytes, keys: UserKeys, embedder_no: int) -> bytes:
        profile: dict[str, str | int] = {"user": user_id}
        if embedder_no != EMBEDDER_NO:
            profile["embedder"] = embedder_no
        content = pad(json.dumps(profile, ensure_ascii=False, sort_keys=True).encode())
        return keys.profile.seal(content, place=self._place(Field.PROFILE, uref, keys))

    def _open_profile(self, row: UserRow, keys: UserKeys) -> tuple[str, int]:
        """The user id, and the number of the embedder of the user's vectors."""
        opened = keys.profile.open(row.profile, place=self._place(Field.PROFILE, row.uref, keys))
        profile = json.loads(unpad(opened))
        if not {"user"} <= profile.keys() <= {"user", "embedder"}:
            raise FormatTooNewError("a user's profile has fields that this memlayer does not know")
        return str(profile["user"]), int(profile.get("embedder", EMBEDDER_NO))

    def _place(self, kind: Field, uref: bytes, keys: UserKeys, *, record: bytes = bytes(16), version: int = 0) -> Place:
        return Place(
            field=kind, store_id=self._keys.store_id, uref=uref, record=record, epoch=keys.epoch, version=version
        )

    def _embedder_place(self, number: int) -> Place:
        return Place(field=Field.EMBEDDER, store_id=self._keys.store_id, epoch=self._keys.epoch, version=number)


def saved_vectors_id(user: UnlockedUser, memory_id: bytes) -> bytes:
    """The id of the item in which a move saves the vectors of a memory."""
    return user.keys.item_id(ItemKind.VECTORS, memory_id.hex().encode())
