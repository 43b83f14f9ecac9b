"""Operations on the rows of a store by somebody who can write the file and has no key.

Each takes an open SQLite connection and `Old`, what the same file held earlier. `OPERATIONS` names them all; those on
single columns are made from the schema, so that a new column is operated on without anybody's thinking of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlcipher3 import dbapi2

from memlayer import MemoryStore, RawKey, migrations
from memlayer.items import ItemKind
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = bytes(range(32))
OTHER_KEY = bytes(range(32, 64))

Rows = list[tuple[Any, ...]]


class Old(NamedTuple):
    """What the file held before its last writes."""

    rows: dict[str, Rows]
    file: bytes


def open_store(path: Path) -> MemoryStore:
    """The store under test."""
    return MemoryStore.open(path, keys=RawKey(KEY), embedder=HashingEmbedder(32))


def connect(path: Path) -> Any:
    """The attacker's connection: no constraint stops it."""
    connection = dbapi2.connect(str(path), isolation_level=None)
    connection.execute("PRAGMA foreign_keys=0")
    connection.execute("PRAGMA ignore_check_constraints=1")
    return connection


def make_store(path: Path) -> Old:
    """Two users in two buckets; then what there is is noted, and both are changed, and a key slot removed."""
    with open_store(path) as store:
        for name in ("alice", "bob"):
            user = store.user(name)
            for number in range(4):
                user.remember(f"{name} says {number}", id=f"own {number}", metadata={"n": number}, session="s")
            for number in range(3):
                user.remember("look", image=f"GIF89a {number} of {name}".encode(), id=f"picture {number}")
            # Of one size, so that the seals of any two could be exchanged.
            for kind in (ItemKind.TOOL_FILE, ItemKind.FRAMEWORK):
                with user.items(kind).change() as items:
                    items |= {own: f"{name}'s {own} of kind {kind}".encode() for own in ("kept", "changed", "dropped")}
        slot = store.add_key(RawKey(OTHER_KEY))
    connection = connect(path)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    rows = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
    connection.close()
    file = path.read_bytes()
    with open_store(path) as store:
        for name in ("alice", "bob"):
            store.user(name).update("own 1", text=f"{name} has another opinion now")
            store.user(name).forget("own 3")
            store.user(name).forget("picture 2")
            store.user(name).remember(f"{name} says the last word")
            with store.user(name).items(ItemKind.TOOL_FILE).change() as items:
                items["changed"] = f"{name} has changed it".encode()
                del items["dropped"]
        store.remove_key(slot)
    return Old(rows, file)


def everything(path: Path) -> list[Any]:
    """All that the public names give."""
    with open_store(path) as store:
        found: list[Any] = [store.count_users(), [slot.kind for slot in store.key_slots()]]
        for name in ("alice", "bob"):
            user = store.user(name)
            turns = list(user.history(limit=100))
            found.append([turns, [[(hit.id, hit.score) for hit in user.recall(turn.text)] for turn in turns]])
            found.append([user.image(turn.id) for turn in turns])
            found += [user.items(kind).read() for kind in ItemKind if kind != ItemKind.IMAGE]
        return found


# --- Operations ---


def _of(connection: Any, name: str) -> bytes:
    """The reference of a user: alice's row was inserted first."""
    order = "ASC" if name == "alice" else "DESC"
    return bytes(connection.execute(f"SELECT uref FROM users ORDER BY rowid {order} LIMIT 1").fetchone()[0])


def _records(connection: Any, name: str) -> list[int]:
    uref = _of(connection, name)
    return [row[0] for row in connection.execute("SELECT rowid FROM records WHERE uref = ? ORDER BY seq", (uref,))]


def _items(connection: Any, name: str, kind: ItemKind = ItemKind.TOOL_FILE) -> list[int]:
    """The user's items of a kind, in the order in which they were written."""
    of = (_of(connection, name), int(kind))
    query = "SELECT rowid FROM items WHERE uref = ? AND kind = ? ORDER BY version, rowid"
    return [row[0] for row in connection.execute(query, of)]


def _old_items(connection: Any, old: Old, name: str) -> Rows:
    """The user's items as they were, that are another row now or none."""
    uref = _of(connection, name)
    there = set(connection.execute("SELECT * FROM items"))
    gone = [row for row in old.rows["items"] if row[0] == uref and row not in there and row[1] != ItemKind.IMAGE]
    assert len(gone) == 2
    return sorted(gone, key=lambda row: bool(connection.execute(
        "SELECT 1 FROM items WHERE uref = ? AND kind = ? AND item_id = ?", row[:3]).fetchone()))  # fmt: skip


def _copy_item(connection: Any, **changes: Any) -> None:
    columns = [row[1] for row in connection.execute("PRAGMA table_info(items)")]
    row = connection.execute("SELECT * FROM items WHERE rowid = ?", (_items(connection, "alice")[0],)).fetchone()
    _put(connection, "items", [tuple((dict(zip(columns, row, strict=True)) | changes).values())])


def _change_item(connection: Any, **changes: Any) -> None:
    settings = ", ".join(f"{column} = ?" for column in changes)
    connection.execute(
        f"UPDATE items SET {settings} WHERE rowid = ?", (*changes.values(), _items(connection, "alice")[0])
    )


def _swap(connection: Any, table: str, columns: list[str], one: int, other: int) -> None:
    names = ", ".join(columns)
    rows = [connection.execute(f"SELECT {names} FROM {table} WHERE rowid = ?", (rowid,)).fetchone()
            for rowid in (one, other)]  # fmt: skip
    for rowid, values in ((one, rows[1]), (other, rows[0])):
        settings = ", ".join(f"{column} = ?" for column in columns)
        connection.execute(f"UPDATE {table} SET {settings} WHERE rowid = ?", (*values, rowid))


def _put(connection: Any, table: str, rows: Rows) -> object:
    for row in rows:
        connection.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    return connection


def _delete_user(connection: Any, name: str, *tables: str) -> None:
    uref = _of(connection, name)
    bucket = int.from_bytes(uref[:2]) >> 4
    for table in tables:
        where = "bucket = ?" if table == "directory" else "uref = ?"
        connection.execute(f"DELETE FROM {table} WHERE {where}", (bucket if table == "directory" else uref,))


def _move(connection: Any, source: str, target: str) -> None:
    uref = _of(connection, target)
    connection.execute("UPDATE records SET uref = ? WHERE rowid = ?", (uref, _records(connection, source)[0]))


def _copy_record(connection: Any, **changes: Any) -> None:
    columns = [row[1] for row in connection.execute("PRAGMA table_info(records)")]
    rowid = _records(connection, "alice")[0]
    values = dict(
        zip(columns, connection.execute("SELECT * FROM records WHERE rowid = ?", (rowid,)).fetchone(), strict=True)
    )
    _put(connection, "records", [tuple((values | changes).values())])


def _copy_user(connection: Any, uref: str) -> None:
    connection.execute(
        f"INSERT INTO users SELECT CAST({uref} AS BLOB), sk_epoch, dek_epoch, commitment, generation, data_key, "
        "manifest, profile FROM users"
    )


def _old_user(connection: Any, old: Old, *tables: str) -> None:
    uref = _of(connection, "alice")
    bucket = int.from_bytes(uref[:2]) >> 4
    for table in tables:
        key = bucket if table == "directory" else uref
        if table in ("records", "items"):
            connection.execute(f"DELETE FROM {table} WHERE uref = ?", (uref,))
        _put(connection, table, [row for row in old.rows[table] if row[0] == key])


def _old_slot(connection: Any, old: Old) -> object:
    return _put(connection, "key_slots", old.rows["key_slots"])


_SEALED_TEXT = ["text", "text_version", "changed"]

OPERATIONS: dict[str, Callable[[Any, Old], object]] = {
    "delete a record": lambda c, _: c.execute("DELETE FROM records WHERE rowid = ?", (_records(c, "alice")[0],)),
    "delete the newest record": lambda c, _: c.execute(
        "DELETE FROM records WHERE rowid = ?", (_records(c, "alice")[-1],)
    ),
    "delete all records": lambda c, _: c.execute("DELETE FROM records"),
    "swap texts of one user": lambda c, _: _swap(c, "records", ["text"], *_records(c, "alice")[:2]),
    "swap texts with their versions": lambda c, _: _swap(c, "records", _SEALED_TEXT, *_records(c, "alice")[:2]),
    "swap texts of two users": lambda c, _: _swap(
        c, "records", ["text"], _records(c, "alice")[0], _records(c, "bob")[0]
    ),
    "swap vectors of one user": lambda c, _: _swap(c, "records", ["vector"], *_records(c, "alice")[:2]),
    "swap vectors of two users": lambda c, _: _swap(
        c, "records", ["vector"], _records(c, "alice")[0], _records(c, "bob")[0]
    ),
    "swap text and vector of a record": lambda c, _: c.execute("UPDATE records SET text = vector, vector = text"),
    "swap the order of two records": lambda c, _: _swap(c, "records", ["seq"], *_records(c, "alice")[:2]),
    "move a record to another user": lambda c, _: _move(c, "alice", "bob"),
    "move a record of the other user here": lambda c, _: _move(c, "bob", "alice"),
    "copy a record under another id": lambda c, _: _copy_record(c, memory_id=os.urandom(16)),
    "copy a record under another id and place": lambda c, _: _copy_record(c, memory_id=os.urandom(16), seq=99),
    "copy a record to another user": lambda c, _: _copy_record(c, uref=_of(c, "bob")),
    "cut texts short": lambda c, _: c.execute("UPDATE records SET text = substr(text, 1, length(text) - 1)"),
    "cut texts to nothing": lambda c, _: c.execute("UPDATE records SET text = x''"),
    "make vectors longer": lambda c, _: c.execute("UPDATE records SET vector = CAST(vector || x'00' AS BLOB)"),
    "replay an old record": lambda c, old: _put(c, "records", old.rows["records"][1:2]),
    "replay a forgotten record": lambda c, old: _put(c, "records", old.rows["records"][3:4]),
    "replay an old user": lambda c, old: _old_user(c, old, "users"),
    "replay an old user with the records": lambda c, old: _old_user(c, old, "users", "records"),
    "replay an old user and bucket": lambda c, old: _old_user(c, old, "users", "directory"),
    "replay an old user, bucket and records": lambda c, old: _old_user(c, old, "users", "directory", "records"),
    "replay all that is a user's": lambda c, old: _old_user(c, old, "users", "directory", "records", "items"),
    "replay an old bucket": lambda c, old: _old_user(c, old, "directory"),
    "replay everything but the store's row": lambda c, old: [
        c.execute("DELETE FROM records"),
        c.execute("DELETE FROM items"),
        *(_put(c, table, old.rows[table]) for table in ("users", "directory", "records", "items")),
    ],
    "delete an item": lambda c, _: c.execute("DELETE FROM items WHERE rowid = ?", (_items(c, "alice")[0],)),
    "delete the newest item": lambda c, _: c.execute("DELETE FROM items WHERE rowid = ?", (_items(c, "alice")[-1],)),
    "delete all items of a user": lambda c, _: _delete_user(c, "alice", "items"),
    "delete all items": lambda c, _: c.execute("DELETE FROM items"),
    "swap two items": lambda c, _: _swap(c, "items", ["sealed"], *_items(c, "alice")[:2]),
    "swap two items with their versions": lambda c, _: _swap(
        c, "items", ["sealed", "version"], *_items(c, "alice")[:2]
    ),
    "swap items of two kinds": lambda c, _: _swap(
        c, "items", ["sealed", "version"], _items(c, "alice")[0], _items(c, "alice", ItemKind.FRAMEWORK)[0]
    ),
    "swap items of two users": lambda c, _: _swap(
        c, "items", ["sealed", "version"], _items(c, "alice")[0], _items(c, "bob")[0]
    ),
    "move an item to another user": lambda c, _: _change_item(c, uref=_of(c, "bob")),
    "move an item of the other user here": lambda c, _: c.execute(
        "UPDATE items SET uref = ? WHERE rowid = ?", (_of(c, "alice"), _items(c, "bob")[0])
    ),
    "copy an item to another user": lambda c, _: _copy_item(c, uref=_of(c, "bob")),
    "copy an item under another id": lambda c, _: _copy_item(c, item_id=os.urandom(16)),
    "copy an item as one of another kind": lambda c, _: _copy_item(c, kind=1),
    "make an item one of another kind": lambda c, _: _change_item(c, kind=1),
    "make an item one of no kind": lambda c, _: _change_item(c, kind=99),
    "put an item under another id": lambda c, _: _change_item(c, item_id=os.urandom(16)),
    "make an item newer": lambda c, _: _change_item(c, version=99),
    "put a memory's text in the place of an item": lambda c, _: c.execute(
        "UPDATE items SET sealed = (SELECT text FROM records WHERE records.uref = items.uref LIMIT 1)"
    ),
    "put an item in the place of a memory's text": lambda c, _: c.execute(
        "UPDATE records SET text = (SELECT sealed FROM items WHERE records.uref = items.uref LIMIT 1)"
    ),
    "cut items short": lambda c, _: c.execute("UPDATE items SET sealed = substr(sealed, 1, length(sealed) - 1)"),
    "cut items to nothing": lambda c, _: c.execute("UPDATE items SET sealed = x''"),
    "make items longer": lambda c, _: c.execute("UPDATE items SET sealed = CAST(sealed || x'00' AS BLOB)"),
    "plant an item": lambda c, _: c.execute(
        "INSERT INTO items SELECT uref, 1, randomblob(16), 1, 1, randomblob(64) FROM users LIMIT 1"
    ),
    "replay a dropped item": lambda c, old: _put(c, "items", _old_items(c, old, "alice")[:1]),
    "replay a changed item": lambda c, old: _put(c, "items", _old_items(c, old, "alice")[1:]),
    "replay a picture of a forgotten memory": lambda c, old: _put(
        c, "items", [row for row in old.rows["items"] if row[1] == ItemKind.IMAGE and row[0] == _of(c, "alice")][2:]
    ),
    "put one picture in the place of another": lambda c, _: c.execute(
        "UPDATE items SET sealed = (SELECT other.sealed FROM items AS other WHERE other.uref = items.uref "
        "AND other.kind = items.kind ORDER BY rowid DESC LIMIT 1) WHERE kind = ?", (int(ItemKind.IMAGE),)
    ),
    "delete a picture": lambda c, _: c.execute("DELETE FROM items WHERE rowid = (SELECT max(rowid) FROM items "
                                               "WHERE kind = ?)", (int(ItemKind.IMAGE),)),
    "replay all items of a user": lambda c, old: _old_user(c, old, "items"),
    "replay an old user with the items": lambda c, old: _old_user(c, old, "users", "items"),
    "replay an old user with records and items": lambda c, old: _old_user(c, old, "users", "records", "items"),
    "delete a user's row": lambda c, _: _delete_user(c, "alice", "users"),
    "delete a user": lambda c, _: _delete_user(c, "alice", "users", "records"),
    "delete a user and the bucket": lambda c, _: _delete_user(c, "alice", "users", "records", "directory"),
    "delete a bucket": lambda c, _: _delete_user(c, "alice", "directory"),
    "delete all users": lambda c, _: [c.execute(f"DELETE FROM {table}") for table in ("users", "records", "directory")],
    "swap two users": lambda c, _: _swap(c, "users", ["sk_epoch", "dek_epoch", "commitment", "generation", "data_key",
                                                      "manifest", "profile"], 1, 2),
    "swap the buckets": lambda c, _: _swap(c, "directory", ["sealed"], 1, 2),
    "copy a bucket": lambda c, _: c.execute("INSERT INTO directory SELECT (bucket + 1) % 4096, sealed FROM directory"),
    "copy a user within the bucket": lambda c, _: _copy_user(c, "substr(uref, 1, 2) || randomblob(14)"),
    "put back a removed key slot": _old_slot,
    "put back a removed key slot and the old manifest": lambda c, old: [
        _old_slot(c, old),
        c.execute("UPDATE meta SET manifest = ?", (old.rows["meta"][0][-1],)),
    ],
    "copy a key slot": lambda c, _: c.execute(
        "INSERT INTO key_slots SELECT slot_id + 7, sk_epoch, kind, memory_kib, iterations, lanes, salt, commitment, "
        "sealed FROM key_slots"
    ),
    "delete the store's row": lambda c, _: c.execute("DELETE FROM meta"),
    "copy the store's row": lambda c, _: c.execute(
        "INSERT INTO meta SELECT 2, magic, format, store_id, sk_epoch, commitment, index_key, manifest FROM meta"
    ),
    "replay the store's manifest": lambda c, old: c.execute("UPDATE meta SET manifest = ?", (old.rows["meta"][0][-1],)),
    "delete the embedder": lambda c, _: c.execute("DELETE FROM embedders"),
    "copy the embedder": lambda c, _: c.execute("INSERT INTO embedders SELECT embedder_no + 1, sealed FROM embedders"),
}  # fmt: skip

# What belongs to nobody is read by nobody but `verify`.
STOWAWAYS: dict[str, Callable[[Any, Old], object]] = {
    "an item of nobody": lambda c, _: _copy_item(c, uref=os.urandom(16)),
    "a record of nobody": lambda c, _: _copy_record(c, uref=os.urandom(16)),
    "a user in an empty bucket": lambda c, _: _copy_user(c, "randomblob(16)"),
}


def _columns() -> dict[str, list[tuple[str, str]]]:
    connection = dbapi2.connect(":memory:")
    for statement in migrations.statements():
        connection.execute(statement)
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    columns = {
        table: [(row[1], row[2]) for row in connection.execute(f"PRAGMA table_info({table})")] for table in tables
    }
    connection.close()
    return columns


def column_operations() -> dict[str, str]:
    """SQL that changes one column in the first row of its table: to a near value, and to one of another type."""
    found = {}
    for table, columns in _columns().items():
        for name, kind in columns:
            first = f"WHERE rowid = (SELECT min(rowid) FROM {table})"
            values = {"another type": f"'x' || {name}", "nothing": "x''"}
            if kind == "BIGINT":
                values |= {"one more": f"{name} + 1", "negative": f"-1 - {name}", "huge": "9223372036854775807",
                           "a number with a point": "0.5"}  # fmt: skip
            else:
                values |= {
                    "another end": f"CAST(substr({name}, 1, length({name}) - 1) || "
                    f"CASE substr({name}, -1) WHEN x'00' THEN x'01' ELSE x'00' END AS BLOB)",
                    "another begin": f"CAST(CASE substr({name}, 1, 1) WHEN x'00' THEN x'01' ELSE x'00' END || "
                    f"substr({name}, 2) AS BLOB)",
                    "as many random bytes": f"randomblob(length({name}))",
                    "a number": "7",
                }
            for what, value in values.items():
                found[f"{table}.{name}: {what}"] = f"UPDATE {table} SET {name} = {value} {first}"
    return found
