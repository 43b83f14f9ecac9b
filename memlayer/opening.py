"""Making a store, opening one, and the parts that an open one is made of."""

from __future__ import annotations

import hmac
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlayer import guard as guards
from memlayer import migrations, tables
from memlayer.database import Database
from memlayer.embedders.protocol import EmbedderIdentity
from memlayer.errors import (
    ConflictError,
    EmbedderMismatchError,
    FormatTooNewError,
    LimitExceededError,
    NotAStoreError,
    NotFoundError,
    ReadOnlyStoreError,
    RollbackDetectedError,
    StorageError,
    StoreDamagedError,
    StoreMissingError,
    WrongKeyError,
)
from memlayer.guard import FileGuard
from memlayer.keys import MAX_SLOTS, KeySlot, StoreKeys, make_slot, open_slot
from memlayer.newfile import new_file, storage_error
from memlayer.reports import KeySlotInfo, VerifyReport
from memlayer.resident import Residents
from memlayer.sources import Argon2Cost, KeyFile, SlotKind, from_environment
from memlayer.tables import MetaRow, SlotRow
from memlayer.vault import EMBEDDER_NO, Vault

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.engine import Connection

    from memlayer.sources import KeySource

__all__ = ["OpenStore", "open_store"]

log = logging.getLogger("memlayer")

_LEFTOVERS = ("-wal", "-journal")


def open_store(
    path: Path,
    *,
    keys: KeySource | None,
    identity: EmbedderIdentity,
    accept_rollback: bool,
    cache_bytes: int,
    any_space: bool = False,
) -> OpenStore:
    """The parts of the store at `path`, which is made if nothing is there; see `MemoryStore.open`.

    Args:
        any_space: also where the store was never written with this embedder, as to move it there.
    """
    source = from_environment() if keys is None else keys
    folder = guards.state_folder()
    if not os.path.lexists(path):
        if not accept_rollback:
            guards.refuse_missing(folder, path)
        _create(path, source, identity=identity)
    elif not _is_file(path):
        raise NotAStoreError(f"{path} is a folder or no plain file; a store is one file", path=str(path))
    # Read-only first: with a wrong key, or where the file is something else, not a byte of it changes; even a log that
    # a crash left behind stays as it is.
    reader = _readable(path)
    try:
        unlocked, slot_id = _unlock(reader, source)
        if not any_space:
            _known_embedder(reader, unlocked, identity=identity)
    finally:
        reader.close()
    if not accept_rollback:
        guards.refuse_other(folder, path, store_id=unlocked.store_id)
    guard = FileGuard(folder, store_id=unlocked.store_id, path=path, key=unlocked.guard_key())
    database = _writable(path, else_mode=reader.mode)
    try:
        vault = Vault(database, keys=unlocked, guard=guard)
        noted = {} if accept_rollback else guard.noted()
        with database.read() as connection:
            # Once more, for between the two another file can have been put here.
            _same_store(connection, unlocked)
            vault.read_embedders(connection)
            present = vault.directory.check(connection)
        if accept_rollback:
            # Only now that all of it is authentic: what is refused must not have been forgotten.
            guards.forget_path(folder, path)
        try:
            guards.compare(noted, present)
        except RollbackDetectedError:
            if not guard.moved_here:
                raise
            # Not that file moved, but a copy that got the number of a deleted one: its guard begins now.
            guards.forget_path(folder, path)
            noted = {}
        for bucket, note in present.items():
            if note[0] > noted.get(bucket, (0, b""))[0]:
                guard.note(bucket, note)
    except BaseException:
        database.close()
        guard.close()
        raise
    residents = Residents(vault=vault, database=database, budget=cache_bytes)
    database.in_child(guard.forked)
    database.in_child(residents.forked)
    return OpenStore(database=database, vault=vault, residents=residents, guard=guard, keys=unlocked, slot_id=slot_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStore:
    """What an open store is made of.

    Attributes:
        database: the file.
        vault: seals and opens its rows.
        residents: the users in RAM.
        guard: notes each commit.
        keys: the store's, unlocked.
        slot_id: the key slot that they came from.
    """

    database: Database
    vault: Vault
    residents: Residents
    guard: FileGuard
    keys: StoreKeys
    slot_id: int

    def close(self) -> None:
        """Frees the indexes and closes the files."""
        self.residents.clear()
        self.database.close()
        self.guard.close()

    def verify(self) -> VerifyReport:
        """See `MemoryStore.verify`."""
        if self.database.pragma("PRAGMA integrity_check") != [("ok",)]:
            raise StoreDamagedError("the database file is not built as it must be; restore a backup")
        if self.database.pragma("PRAGMA foreign_key_check"):
            raise StoreDamagedError("there are memories whose user is gone")
        with self.database.read() as connection:
            _same_store(connection, self.keys)
            buckets = self.vault.directory.check(connection)
            users, memories = self.vault.verify_users(connection)
        pages = int(self.database.pragma("PRAGMA page_count")[0][0])
        return VerifyReport(users=users, memories=memories, buckets=len(buckets) - 1, pages=pages)

    def backup(self, path: Path) -> None:
        """See `MemoryStore.backup`."""
        try:
            with new_file(path) as draft:
                self.database.vacuum_into(draft)
                copy = Database(draft, mode="rw")  # A copy is not in write-ahead mode until it is opened in it.
                try:
                    copy.pragma("PRAGMA user_version")
                finally:
                    copy.close()
        except OSError as error:
            raise storage_error(error, path) from None

    def key_slots(self) -> list[KeySlotInfo]:
        """See `MemoryStore.key_slots`."""
        with self.database.read() as connection:
            slots = [_slot(row) for row in tables.read_slots(connection)]
        return [
            KeySlotInfo(slot=slot.slot_id, kind=slot.kind.name.lower(), used=slot.slot_id == self.slot_id)
            for slot in slots
        ]

    def add_slot(self, source: KeySource) -> int:
        """See `MemoryStore.add_key`."""
        secret = source.secret(store_id=self.keys.store_id, create=True)
        with self.vault.write() as write:
            slots = tables.read_slots(write.connection)
            if len(slots) >= MAX_SLOTS:
                raise LimitExceededError(f"a store has at most {MAX_SLOTS} key slots", limit=MAX_SLOTS)
            slot_id = 1 + max(row.slot_id for row in slots)
            slot = self.keys.new_slot(source, secret=secret, slot_id=slot_id)
            tables.insert_slot(write.connection, _row(slot))
            self.vault.directory.change_slots(write)
        return slot_id

    def remove_slot(self, slot_id: int) -> None:
        """See `MemoryStore.remove_key`."""
        with self.vault.write() as write:
            slot_ids = [row.slot_id for row in tables.read_slots(write.connection)]
            if slot_id not in slot_ids:
                raise NotFoundError("the store has no key slot of this number")
            if len(slot_ids) == 1:
                raise ConflictError("this is the only way into the store; add another key before removing it")
            tables.delete_slot(write.connection, slot_id)
            self.vault.directory.change_slots(write)
        self.database.checkpoint()


def _create(path: Path, source: KeySource, *, identity: EmbedderIdentity) -> None:
    for suffix in _LEFTOVERS:
        # An empty one holds nothing; opening a store read-only can leave one.
        if _has_content(path.with_name(path.name + suffix)):
            # SQLite would replay it into the new file.
            raise StoreMissingError(
                f"there is no store at {path}, but its log {path.name}{suffix} is there: restore the store, "
                "or remove that file too",
                path=str(path),
            )
    store_id, store_key = os.urandom(16), os.urandom(32)
    try:
        with new_file(path) as draft:
            secret = source.secret(store_id=store_id, create=True)
            slot = _row(make_slot(source, secret=secret, store_key=store_key, store_id=store_id, slot_id=1))
            keys = StoreKeys(store_key, store_id=store_id, epoch=1, sealed_index_key=None)
            database = Database(draft, mode="rw")
            try:
                _fill(Vault(database, keys=keys, guard=None), database, keys, slot=slot, identity=identity)
            finally:
                database.close()
    except FileExistsError:
        # Another process made it at the same moment: that one is opened, and a key for this one is of no use.
        if isinstance(source, KeyFile):
            source.discard(store_id=store_id)
        return
    except OSError as error:
        raise storage_error(error, path) from None
    log.info("made the store %s", path)


def _fill(vault: Vault, database: Database, keys: StoreKeys, *, slot: SlotRow, identity: EmbedderIdentity) -> None:
    with database.write() as connection:
        tables.make_schema(connection)
        tables.insert_slot(connection, slot)
        tables.insert_embedder(connection, vault.seal_embedder(identity, number=EMBEDDER_NO))
        meta = MetaRow(
            magic=migrations.MAGIC,
            format=migrations.FORMAT,
            store_id=keys.store_id,
            sk_epoch=keys.epoch,
            commitment=keys.commitment,
            index_key=keys.sealed_index_key,
            manifest=vault.directory.new_manifest([slot]),
        )
        tables.insert_meta(connection, meta)


def _readable(path: Path) -> Database:
    """A connection that changes nothing."""
    header = Database(path, mode="immutable")
    try:
        # First without a lock or a log, which beside a foreign database in write-ahead mode would leave files of ours.
        # What is read here is written once, when a store is made.
        with header.read() as connection:
            tables.check_application(connection)
    except NotAStoreError:
        raise
    except StorageError:
        pass  # Without its log the file of a store in use need not be whole; the ordinary way tells what it is.
    finally:
        header.close()
    database = Database(path, mode="ro")
    try:
        with database.read() as connection:
            tables.check_schema(connection)
        return database
    except StorageError as error:
        database.close()
        # On a file system that cannot be written not even the index of the log can be made. Without a log there is
        # nothing that reading without it could miss.
        unwritable = error.evidence.get("sqlite") in (8, 14)
        if not unwritable or _has_content(path.with_name(f"{path.name}-wal")):
            raise
    return Database(path, mode="immutable")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise storage_error(error, path) from None


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        # Not told to be absent: what cannot be looked at may hold what was written last.
        raise storage_error(error, file) from None


def _writable(path: Path, *, else_mode: str) -> Database:
    """A connection that writes, or where that cannot be one of `else_mode`."""
    # Where only the folder cannot be written, SQLite opens, reads, and fails with the first write.
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return _read_only(path, mode=else_mode)
    database = Database(path, mode="rw")
    try:
        database.pragma("PRAGMA user_version")
    except StorageError as error:
        database.close()
        if not isinstance(error, ReadOnlyStoreError) and error.evidence.get("sqlite") != 14:
            raise
        return _read_only(path, mode=else_mode)
    return database


def _read_only(path: Path, *, mode: str) -> Database:
    log.warning("the store %s cannot be written; memories can be recalled, not added", path)
    return Database(path, mode=mode)


def _unlock(database: Database, source: KeySource) -> tuple[StoreKeys, int]:
    with database.read() as connection:
        tables.check_schema(connection)
        meta = _meta(connection)
        slots = [_slot(row) for row in tables.read_slots(connection)]
    if source.kind not in {slot.kind for slot in slots}:
        raise WrongKeyError(
            f"this store has no slot for a {_named(source.kind)}; it opens with a "
            f"{' or a '.join(sorted(_named(slot.kind) for slot in slots))}",
            slots=", ".join(sorted(slot.kind.name.lower() for slot in slots)),
        )
    secret = source.secret(store_id=meta.store_id, create=False)
    slot, store_key = open_slot(slots, kind=source.kind, secret=secret, store_id=meta.store_id)
    if slot.epoch != meta.sk_epoch:
        raise StoreDamagedError("the key slot holds another key than the store is sealed with")
    keys = StoreKeys.unlock(
        store_key,
        store_id=meta.store_id,
        epoch=meta.sk_epoch,
        commitment=meta.commitment,
        sealed_index_key=meta.index_key,
    )
    return keys, slot.slot_id


def _named(kind: SlotKind) -> str:
    return {SlotKind.KEY: "key or key file", SlotKind.RECOVERY: "recovery key"}.get(kind, "passphrase")


def _meta(connection: Connection) -> MetaRow:
    meta = tables.read_meta(connection)
    if meta is None or meta.magic != migrations.MAGIC:
        raise StoreDamagedError("the store's own row is gone or damaged")
    if meta.format != migrations.FORMAT:
        raise FormatTooNewError(
            f"this store has format {meta.format}, this memlayer knows {migrations.FORMAT}; install the newer one",
            format=meta.format,
        )
    return meta


def _same_store(connection: Connection, keys: StoreKeys) -> None:
    tables.check_schema(connection)
    meta = _meta(connection)
    if meta.store_id != keys.store_id or not hmac.compare_digest(meta.commitment, keys.commitment):
        raise StoreDamagedError("another store was put in the place of this one while it was opened")


def _known_embedder(database: Database, keys: StoreKeys, *, identity: EmbedderIdentity) -> None:
    with database.read() as connection:
        embedders = Vault(database, keys=keys, guard=None).read_embedders(connection)
    if identity in embedders.values():
        return  # Or one of two, while the store is being moved from one to the other.
    written = embedders[max(embedders)]
    differing = [name for name, value in dict(written).items() if value != getattr(identity, name)]
    raise EmbedderMismatchError(
        f"this store was written with the embedder {written.model!r} ({written.dimensions} dimensions), not with "
        f"{identity.model!r} ({identity.dimensions}); they differ in: {', '.join(differing)}. Open it with the "
        "embedder that it was written with; to change over, do that and call store.reembed(new_embedder), or run "
        "`memlayer reembed`",
        written=written.model,
        given=identity.model,
    )


def _slot(row: SlotRow) -> KeySlot:
    try:
        kind = SlotKind(row.kind)
    except ValueError:
        raise StoreDamagedError("a key slot is of no known kind") from None
    cost = Argon2Cost(memory_kib=row.memory_kib, iterations=row.iterations, lanes=row.lanes)
    return KeySlot(
        slot_id=row.slot_id,
        epoch=row.sk_epoch,
        kind=kind,
        cost=cost,
        salt=row.salt,
        commitment=row.commitment,
        sealed=row.sealed,
    )


def _row(slot: KeySlot) -> SlotRow:
    return SlotRow(
        slot_id=slot.slot_id,
        sk_epoch=slot.epoch,
        kind=slot.kind,
        memory_kib=slot.cost.memory_kib,
        iterations=slot.cost.iterations,
        lanes=slot.cost.lanes,
        salt=slot.salt,
        commitment=slot.commitment,
        sealed=slot.sealed,
    )
