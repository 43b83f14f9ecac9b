"""Rows that were removed, moved, copied, changed or put back by somebody without the key: always an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memlayer import (
    EmbedderMismatchError,
    FormatTooNewError,
    MemoryStore,
    RollbackDetectedError,
    StorageError,
    StoreDamagedError,
    WrongKeyError,
)
from memlayer.items import ItemKind
from tests.faults import surgery

ROLLBACKS = {
    "replay an old user, bucket and records",
    "replay all that is a user's",
    "replay everything but the store's row",
    "put back a removed key slot and the old manifest",
}


def _fingerprint(path: Path) -> dict[str, object]:
    """Everything in the file as the attacker sees it."""
    connection = surgery.connect(path)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    connection.text_factory = bytearray  # Bytes that became text need not be UTF-8.
    rows: dict[str, object] = {
        table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables
    }
    connection.close()
    return rows


def _operate(path: Path, name: str, old: surgery.Old) -> None:
    before = _fingerprint(path)
    connection = surgery.connect(path)
    (surgery.OPERATIONS | surgery.STOWAWAYS)[name](connection, old)
    connection.close()
    # An operation that does nothing would prove nothing.
    assert _fingerprint(path) != before


@pytest.mark.parametrize("name", surgery.OPERATIONS)
def test_an_operation_is_found_at_the_next_open_and_read(tmp_path: Path, name: str) -> None:
    """A store whose rows were operated on cannot be opened and read as if nothing had happened."""
    path = tmp_path / "store.db"
    old = surgery.make_store(path)
    _operate(path, name, old)
    with pytest.raises(RollbackDetectedError if name in ROLLBACKS else StoreDamagedError):
        surgery.everything(path)


def test_a_store_that_nobody_operated_on_opens(tmp_path: Path) -> None:
    """The same store without an operation opens, reads and verifies, after the attacker has only looked at it."""
    path = tmp_path / "store.db"
    surgery.make_store(path)
    before = surgery.everything(path)
    _fingerprint(path)
    assert surgery.everything(path) == before
    with surgery.open_store(path) as store:
        assert (store.verify().users, store.verify().memories) == (2, 12)


def test_an_older_file_is_a_rollback(tmp_path: Path) -> None:
    """The whole file as it was some writes ago is a `RollbackDetectedError`, and opens when that is accepted."""
    path = tmp_path / "store.db"
    old = surgery.make_store(path)
    path.write_bytes(old.file)
    with pytest.raises(RollbackDetectedError, match="accept_rollback"):
        surgery.everything(path)


@pytest.mark.parametrize("name", surgery.STOWAWAYS)
def test_a_stowaway_is_found_by_verify(tmp_path: Path, name: str) -> None:
    """A row that belongs to nobody changes no answer, and `verify` finds it."""
    path = tmp_path / "store.db"
    old = surgery.make_store(path)
    before = surgery.everything(path)
    _operate(path, name, old)
    assert surgery.everything(path) == before
    with surgery.open_store(path) as store, pytest.raises(StoreDamagedError):
        store.verify()


def test_every_changed_column_is_found(tmp_path: Path) -> None:
    """Any change of any column of any table, to a near value, another type or nothing, is a typed error at open or
    read."""
    path = tmp_path / "store.db"
    surgery.make_store(path)
    image = path.read_bytes()
    before = surgery.everything(path)
    silent, raw, wrong_key = [], [], []
    operations = surgery.column_operations()
    for name, statement in operations.items():
        path.write_bytes(image)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        as_written = _fingerprint(path)
        connection = surgery.connect(path)
        connection.execute(statement)
        connection.close()
        assert _fingerprint(path) != as_written, name
        try:
            found = surgery.everything(path)
        except WrongKeyError:
            wrong_key.append(name)
        except (StorageError, EmbedderMismatchError):
            continue
        except Exception as error:  # noqa: BLE001  this is what is looked for
            raw.append(f"{name}: {type(error).__name__}")
        else:
            silent.append(f"{name}: {'the same' if found == before else 'OTHER'} content")
    print(f"{len(operations)} changes, {len(wrong_key)} of them found as a wrong key")
    # It is there for its constraint, that there is one row, and is not read.
    assert [change for change in silent if not change.startswith("meta.id: ") or "OTHER" in change] == []
    assert raw == []
    # What tells a wrong key from a right one is in the slot: with that changed, nobody can say which it is.
    assert {name.partition(":")[0] for name in wrong_key} <= {
        "key_slots.kind", "key_slots.salt", "key_slots.commitment"
    }  # fmt: skip
    assert len(operations) > 200


@pytest.mark.parametrize("name", [name for name in surgery.OPERATIONS if "key slot" not in name])
def test_an_operation_under_a_running_process(tmp_path: Path, name: str) -> None:
    """A process that has both users in RAM answers from there or with an error, never from what was operated on.

    Another process then writes: the next answer is right and holds that write, or it is an error.
    """
    path = tmp_path / "store.db"
    old = surgery.make_store(path)
    with surgery.open_store(path) as store, surgery.open_store(path) as other:
        right = {user: [turn.text for turn in store.user(user).history()] for user in ("alice", "bob")}
        items = {user: _items(store, user) for user in ("alice", "bob")}
        assert all(items.values())
        _operate(path, name, old)
        for user in ("alice", "bob"):
            assert _texts(store, user) in (None, right[user])
            assert _items(store, user) in (None, items[user])
        for user in ("alice", "bob"):
            try:
                other.user(user).remember("written later")
            except (StoreDamagedError, FormatTooNewError):
                pass  # It was found before the write.
            else:
                right[user].append("written later")
            assert _texts(store, user) in (None, right[user])
            assert _items(store, user) in (None, items[user])
    with pytest.raises(StoreDamagedError):
        surgery.everything(path)


def _items(store: MemoryStore, user: str) -> dict[str, bytes] | None:
    try:
        return store.user(user).items(ItemKind.TOOL_FILE).read()
    except StoreDamagedError:
        return None


def _texts(store: MemoryStore, user: str) -> list[str] | None:
    try:
        return [turn.text for turn in store.user(user).history()]
    except StoreDamagedError:
        return None


def test_another_store_in_the_place_of_this_one(tmp_path: Path) -> None:
    """A store with the same key that is put in the place of another one is not taken for it."""
    path, other = tmp_path / "store.db", tmp_path / "other.db"
    surgery.make_store(path)
    surgery.make_store(other)
    os.replace(other, path)
    with pytest.raises(StoreDamagedError):
        surgery.everything(path)
