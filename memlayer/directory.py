"""The directory: which users there are, so that one who is missing is an error and not a new one.

The users are spread over 4,096 buckets by the first bits of their reference. A bucket is a sealed manifest of the users
in it (see `memlayer.manifest`); one more manifest, over the store, says which buckets were ever written and which key
slots and embedders there are. All of it is written in the transaction that writes the user.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import TYPE_CHECKING

from memlayer import tables
from memlayer.envelope import Field, Place, tag
from memlayer.errors import RollbackDetectedError, StoreDamagedError
from memlayer.manifest import BUCKETS, BucketManifest, StoreManifest, bucket_of, user_element
from memlayer.sealer import EMBEDDER_NO
from memlayer.tables import BucketRow, EmbedderRow, SlotRow, UserRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.engine import Connection

    from memlayer.database import Database
    from memlayer.guard import Note
    from memlayer.keys import StoreKeys
    from memlayer.writes import Write

__all__ = ["Directory"]


class Directory:
    """The directory of one store.

    Args:
        database: where it is.
        keys: the store's, unlocked.
    """

    def __init__(self, database: Database, *, keys: StoreKeys) -> None:
        self._database = database
        self._keys = keys
        # The newest generation of each bucket that this process saw: the guard's rule, without a file, while running.
        self._seen: dict[int, int] = {}

    def check(self, connection: Connection) -> dict[int, Note]:
        """What the rollback guard compares: every bucket and the store's own manifest (under the number `BUCKETS`),
        once all of them are authentic and none is missing."""
        sealed, manifest = self._store_manifest(connection)
        self._check_slots(connection, manifest)
        rows = tables.read_buckets(connection)
        generations = {row.bucket: self._open_bucket(row).generation for row in rows}
        if generations.keys() != manifest.buckets:
            raise StoreDamagedError("the directory has lost or gained a bucket")
        self._seen |= {bucket: max(generation, self._seen.get(bucket, 0)) for bucket, generation in generations.items()}
        notes = {row.bucket: (generations[row.bucket], tag(row.sealed)) for row in rows}
        return notes | {BUCKETS: (manifest.generation, tag(sealed))}

    def check_slots(self, connection: Connection) -> None:
        """Raises unless the key slots and embedders are those that were written."""
        self._check_slots(connection, self._store_manifest(connection)[1])

    def new_manifest(self, slots: Sequence[SlotRow]) -> bytes:
        """The sealed manifest of a store that nobody has written to."""
        return self._seal_store(StoreManifest(1, frozenset(), slots_digest(slots)))

    def change_slots(self, write: Write) -> None:
        """Takes the key slots and embedders as they stand in this transaction for the right ones."""
        sealed, manifest = self._store_manifest(write.connection)
        self._change_store(write, sealed, manifest.with_slots(_slots_in(write.connection)))

    def count_users(self, connection: Connection) -> int:
        """How many users have memories, from the sealed buckets."""
        return sum(self._open_bucket(row).users for row in tables.read_buckets(connection))

    def users_in(self, connection: Connection, bucket: int) -> list[UserRow]:
        """All users of a bucket, once they add up to what the bucket says."""
        row = tables.read_bucket(connection, bucket)
        manifest = self._never_written(connection, bucket) if row is None else self._open_bucket(row)
        if manifest.generation < self._seen.get(bucket, 0):
            self._refuse_rollback(bucket)
        self._seen[bucket] = max(manifest.generation, self._seen.get(bucket, 0))
        users = tables.read_users_in(connection, first=_first_in(bucket), last=_last_in(bucket))
        if not manifest.holds([self._user_element(user) for user in users]):
            raise StoreDamagedError("a user's row was changed, removed, added or replaced by an older one")
        return users

    @staticmethod
    def _check_slots(connection: Connection, manifest: StoreManifest) -> None:
        if manifest.slots != _slots_in(connection):
            raise StoreDamagedError("the key slots or the embedders are not those that were written")

    def _never_written(self, connection: Connection, bucket: int) -> BucketManifest:
        """An empty bucket, if it is one that nobody has written to yet; else its row was removed."""
        _, manifest = self._store_manifest(connection)
        if bucket in manifest.buckets:
            raise StoreDamagedError("the directory has lost a bucket")
        return BucketManifest()

    def _refuse_rollback(self, bucket: int) -> None:
        """A snapshot may be older than what another thread has committed since; only a new one that is still behind
        is a rollback."""
        seen = self._seen[bucket]
        with self._database.read() as connection:
            row = tables.read_bucket(connection, bucket)
            if row is None or self._open_bucket(row).generation < seen:
                raise RollbackDetectedError("the store is older than what this process last saw of it")

    def committed(self, write: Write) -> None:
        """Takes note, in this process, of what a committed transaction wrote."""
        for bucket, note in write.notes.items():
            self._seen[bucket] = max(note[0], self._seen.get(bucket, 0))

    def change_user(self, write: Write, *, added: UserRow | None, removed: UserRow | None) -> None:
        """Writes a user's bucket after the user's row: `added` as it is now, `removed` as it was, None where there is
        none."""
        uref = (added or removed).uref  # type: ignore[union-attr]
        bucket = bucket_of(uref)
        row = tables.read_bucket(write.connection, bucket)
        before = BucketManifest() if row is None else self._open_bucket(row)
        after = before.changed(
            added=None if added is None else self._user_element(added),
            removed=None if removed is None else self._user_element(removed),
        )
        sealed = self._keys.directory.seal(after.encode(), place=self._bucket_place(bucket))
        if row is None:
            tables.insert_bucket(write.connection, BucketRow(bucket, sealed))
            store, manifest = self._store_manifest(write.connection)
            self._change_store(write, store, manifest.with_bucket(bucket))
        else:
            tables.update_bucket(write.connection, BucketRow(bucket, sealed))
        write.notes[bucket] = (after.generation, tag(sealed))
        write.buckets[bucket] = sealed

    def _store_manifest(self, connection: Connection) -> tuple[bytes, StoreManifest]:
        meta = tables.read_meta(connection)
        if meta is None:
            raise StoreDamagedError("the store's own row is gone")
        return meta.manifest, StoreManifest.decode(self._keys.directory.open(meta.manifest, place=self._store_place()))

    def _change_store(self, write: Write, old: bytes, manifest: StoreManifest) -> None:
        new = self._seal_store(manifest)
        tables.update_meta(write.connection, old=old, new=new)
        write.notes[BUCKETS] = (manifest.generation, tag(new))

    def _seal_store(self, manifest: StoreManifest) -> bytes:
        return self._keys.directory.seal(manifest.encode(), place=self._store_place())

    def _open_bucket(self, row: BucketRow) -> BucketManifest:
        return BucketManifest.decode(self._keys.directory.open(row.sealed, place=self._bucket_place(row.bucket)))

    def _user_element(self, row: UserRow) -> int:
        return user_element(
            self._keys.set_key,
            uref=row.uref,
            data_key_tag=tag(row.data_key),
            manifest_tag=tag(row.manifest),
            profile_tag=tag(row.profile),
        )

    def _bucket_place(self, bucket: int) -> Place:
        return Place(field=Field.BUCKET, store_id=self._keys.store_id, epoch=self._keys.epoch, version=bucket)

    def _store_place(self) -> Place:
        return Place(field=Field.STORE, store_id=self._keys.store_id, epoch=self._keys.epoch)


def slots_digest(slots: Sequence[SlotRow], embedders: Sequence[EmbedderRow] = ()) -> bytes:
    """32 bytes that stand for exactly these key slots, and these embedders, once there was a second one: until then
    there is the one row that was sealed with the store, and no other that could be put in its place."""
    digest = sha256()
    for slot in sorted(slots):
        numbers = (slot.slot_id, slot.sk_epoch, slot.kind, slot.memory_kib, slot.iterations, slot.lanes)
        digest.update(struct.pack(">6Q", *numbers) + slot.salt + slot.commitment + slot.sealed)
    if [row.embedder_no for row in embedders] in ([], [EMBEDDER_NO]):
        return digest.digest()
    # Of an odd length, which the encoding of slots never has.
    both = sha256(b"embedders" + digest.digest())
    for row in sorted(embedders):
        both.update(struct.pack(">Q", row.embedder_no) + sha256(row.sealed).digest())
    return both.digest()


def _slots_in(connection: Connection) -> bytes:
    return slots_digest(tables.read_slots(connection), tables.read_embedders(connection))


def _first_in(bucket: int) -> bytes:
    return (bucket << 4).to_bytes(2) + bytes(14)


def _last_in(bucket: int) -> bytes:
    return (bucket << 4 | 0xF).to_bytes(2) + b"\xff" * 14
