"""The SQL layer: rows of bytes and numbers, in and out. It holds no key, sees no text, no vector and no user id.

Nothing here is trusted by the layer above. A query that loses its WHERE returns rows that do not authenticate for the
user who asked; an UPDATE or DELETE that touches another number of rows than it was meant to raises before the commit.
What a row of a damaged file holds is checked for type and size here, so that no parser behind it meets a surprise.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from memlayer import migrations
from memlayer.database import change, fetch
from memlayer.errors import FormatTooNewError, NotAStoreError, StoreDamagedError
from memlayer.rows import (
    IMAGE_KIND,
    SIZES,
    TYPES,
    BucketRow,
    EmbedderRow,
    ItemId,
    ItemRow,
    MetaRow,
    RecordRow,
    Row,
    RowCount,
    SlotRow,
    UserRow,
)

__all__ = ["BucketRow", "EmbedderRow", "ItemId", "ItemRow", "MetaRow", "RecordRow", "RowCount", "SlotRow", "UserRow"]


class _Bytes(sa.types.UserDefinedType[bytes]):
    """Bytes as the driver gives them. SQLAlchemy's own type runs `bytes(value)` over every result, which turns a
    number in a damaged file into that many zeros."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "BLOB"


_BYTES, _INT = _Bytes, sa.BigInteger
_schema = sa.MetaData()


def _table(name: str, **columns: type[sa.types.TypeEngine[Any]]) -> sa.Table:
    return sa.Table(name, _schema, *(sa.Column(column, kind) for column, kind in columns.items()))


meta = _table(
    "meta", id=_INT, magic=_BYTES, format=_INT, store_id=_BYTES, sk_epoch=_INT, commitment=_BYTES, index_key=_BYTES,
    manifest=_BYTES,
)  # fmt: skip
key_slots = _table(
    "key_slots", slot_id=_INT, sk_epoch=_INT, kind=_INT, memory_kib=_INT, iterations=_INT, lanes=_INT, salt=_BYTES,
    commitment=_BYTES, sealed=_BYTES,
)  # fmt: skip
embedders = _table("embedders", embedder_no=_INT, sealed=_BYTES)
directory = _table("directory", bucket=_INT, sealed=_BYTES)
users = _table(
    "users", uref=_BYTES, sk_epoch=_INT, dek_epoch=_INT, commitment=_BYTES, generation=_INT, data_key=_BYTES,
    manifest=_BYTES, profile=_BYTES,
)  # fmt: skip
records = _table(
    "records", uref=_BYTES, memory_id=_BYTES, seq=_INT, dek_epoch=_INT, changed=_INT, text_version=_INT,
    vector_version=_INT, embedder_no=_INT, text=_BYTES, vector=_BYTES,
)  # fmt: skip
items = _table(
    "items", uref=_BYTES, kind=_INT, item_id=_BYTES, dek_epoch=_INT, version=_INT, sealed=_BYTES
)  # fmt: skip

# SQLite takes 32,766 bound values and PostgreSQL 65,535; more ids than this go in several statements.
_IDS_A_STATEMENT = 1000
_ROWS_A_STATEMENT = 500


def _read(connection: Connection, statement: sa.Select[Any], kind: type[Row], **values: object) -> list[Row]:
    """The rows, each column of the type and size that it must have, whatever the file says."""
    types = TYPES[kind]
    sizes = [(kind._fields.index(name), size) for name, size in SIZES[kind].items()]
    rows = []
    for row in fetch(connection, statement, values):
        # 64-bit and not negative: every number of the format is a count, a version or an identifier.
        if tuple(map(type, row)) != types or any(type(value) is int and value < 0 for value in row):
            raise StoreDamagedError("a row holds a value of the wrong type", row=kind.__name__)
        if any(len(row[column]) != size for column, size in sizes):
            raise StoreDamagedError("a row holds a value of the wrong size", row=kind.__name__)
        rows.append(kind(*row))
    return rows


def _columns(table: sa.Table, kind: type[Row]) -> list[sa.Column[Any]]:
    return [table.c[name] for name in kind._fields]


def _touched(
    connection: Connection, statement: sa.UpdateBase, values: dict[str, Any] | list[dict[str, Any]], *, exactly: int
) -> None:
    """Runs a change that must touch `exactly` so many rows; otherwise raises, and the transaction is rolled back."""
    count = change(connection, statement, values)
    if count != exactly:
        raise StoreDamagedError("a change touched another number of rows than it must", expected=exactly, touched=count)


def _only(rows: list[Row]) -> Row | None:
    if len(rows) > 1:
        raise StoreDamagedError("there are several rows where there can be one", rows=len(rows))
    return rows[0] if rows else None


def make_schema(connection: Connection) -> None:
    """Makes the tables of an empty database."""
    for statement in migrations.statements():
        change(connection, sa.text(statement))
    change(connection, sa.text(f"PRAGMA application_id = {migrations.APPLICATION_ID}"))
    change(connection, sa.text(f"PRAGMA user_version = {migrations.FORMAT}"))


def check_application(connection: Connection) -> None:
    """Raises `NotAStoreError` unless the database says in its header that it is a memlayer store."""
    ((application_id,),) = fetch(connection, sa.text("PRAGMA application_id"))
    if application_id != migrations.APPLICATION_ID:
        raise NotAStoreError("the file is no memlayer store; it was left as it is")


def check_schema(connection: Connection) -> None:
    """Raises unless the database has exactly the schema of the migrations: nothing else may stand in a store's file.

    Raises:
        NotAStoreError: a database of something else, or an empty one.
        FormatTooNewError: of a later memlayer.
        StoreDamagedError: a table, index, view or trigger that is not ours, or ours in other words.
    """
    check_application(connection)
    ((version,),) = fetch(connection, sa.text("PRAGMA user_version"))
    if version != migrations.FORMAT:
        raise FormatTooNewError("this store has a schema that this memlayer does not know", version=version)
    found = set(fetch(connection, sa.text("SELECT type, tbl_name, sql FROM sqlite_schema")))
    expected = {_described(statement) for statement in migrations.statements()}
    # SQLite makes an index of its own for each primary key; it has no text.
    expected |= {("index", table, None) for _, table, _ in expected}
    if {tuple(row) for row in found} != expected:
        raise StoreDamagedError("the database holds something that memlayer did not make")


def _described(statement: str) -> tuple[str, str, str | None]:
    _, kind, name, *rest = statement.split()
    return (kind.lower(), rest[1] if kind == "INDEX" else name, statement)


# Each statement is built once: building one costs five times as much as running it (45 us against 9).
_uref: sa.BindParameter[bytes] = sa.bindparam("the_uref")
_bucket: sa.BindParameter[int] = sa.bindparam("the_bucket")
_memory_ids: sa.BindParameter[list[bytes]] = sa.bindparam("memory_ids", expanding=True)
_item_ids: sa.BindParameter[list[bytes]] = sa.bindparam("item_ids", expanding=True)
_kind: sa.BindParameter[int] = sa.bindparam("the_kind")
_own_records = records.c.uref == _uref
_own_items = items.c.uref == _uref

_META = sa.select(*_columns(meta, MetaRow))
_META_UPDATE = sa.update(meta).where(meta.c.manifest == sa.bindparam("old"))
_SLOTS = sa.select(*_columns(key_slots, SlotRow)).order_by(key_slots.c.slot_id)
_SLOT_DELETE = sa.delete(key_slots).where(key_slots.c.slot_id == sa.bindparam("the_slot"))
_EMBEDDERS = sa.select(*_columns(embedders, EmbedderRow)).order_by(embedders.c.embedder_no)
_EMBEDDER_DELETE = sa.delete(embedders).where(embedders.c.embedder_no == sa.bindparam("the_number"))
_BUCKETS = sa.select(*_columns(directory, BucketRow)).order_by(directory.c.bucket)
_BUCKET = sa.select(*_columns(directory, BucketRow)).where(directory.c.bucket == _bucket)
_BUCKET_UPDATE = sa.update(directory).where(directory.c.bucket == _bucket)
_USERS_IN = sa.select(*_columns(users, UserRow)).where(
    users.c.uref.between(sa.bindparam("first"), sa.bindparam("last"))
)
_SEALS = sa.select(
    sa.select(users.c.manifest).where(users.c.uref == _uref).scalar_subquery(),
    sa.select(directory.c.sealed).where(directory.c.bucket == _bucket).scalar_subquery(),
)
_USER_UPDATE = sa.update(users).where((users.c.uref == _uref) & (users.c.generation == sa.bindparam("old")))
_USER_DELETE = sa.delete(users).where(users.c.uref == _uref)
_RECORDS = sa.select(*_columns(records, RecordRow)).where(_own_records & (records.c.changed > sa.bindparam("after")))
_RECORDS_BY_ID = sa.select(*_columns(records, RecordRow)).where(_own_records & records.c.memory_id.in_(_memory_ids))
_RECORD_IDS = sa.select(records.c.memory_id).where(_own_records).order_by(records.c.seq)
_RECORD_UPDATE = sa.update(records).where(_own_records & (records.c.memory_id == sa.bindparam("the_id")))
_VECTOR_UPDATE = (
    sa.update(records)
    .where(
        _own_records
        & (records.c.memory_id == sa.bindparam("the_id"))
        & (records.c.vector_version == sa.bindparam("old"))
    )
    .values({name: sa.bindparam(name) for name in ("changed", "vector_version", "embedder_no", "vector")})
)
_RECORDS_DELETE = sa.delete(records).where(_own_records & records.c.memory_id.in_(_memory_ids))
_ALL_RECORDS_DELETE = sa.delete(records).where(_own_records)
# An image's content is read where it is asked for, and nowhere else: all of a user's may be gigabytes.
_LIGHT_ITEM = [
    sa.case((items.c.kind == IMAGE_KIND, sa.literal(b"", _BYTES())), else_=items.c.sealed).label("sealed")
    if column.name == "sealed"
    else column
    for column in _columns(items, ItemRow)
]
_ITEMS = sa.select(*_LIGHT_ITEM).where(_own_items & (items.c.version > sa.bindparam("after")))
_ITEM_IDS = sa.select(*_columns(items, ItemId)).where(_own_items)
_BY_ITEM_ID = _own_items & (items.c.kind == _kind) & items.c.item_id.in_(_item_ids)
_ITEMS_BY_ID = sa.select(*_LIGHT_ITEM).where(_BY_ITEM_ID)
_WHOLE_ITEMS_BY_ID = sa.select(*_columns(items, ItemRow)).where(_BY_ITEM_ID)
_ITEMS_OF_KIND = sa.select(*_LIGHT_ITEM).where(_own_items & (items.c.kind == _kind))
_ITEM_UPDATE = sa.update(items).where(
    _own_items & (items.c.kind == _kind) & (items.c.item_id == sa.bindparam("the_id"))
)
_ITEMS_DELETE = sa.delete(items).where(_own_items & (items.c.kind == _kind) & items.c.item_id.in_(_item_ids))
_ALL_ITEMS_DELETE = sa.delete(items).where(_own_items)
_RECORD_COUNTS = sa.select(records.c.uref, sa.func.count()).group_by(records.c.uref)
_ITEM_COUNTS = sa.select(items.c.uref, sa.func.count()).group_by(items.c.uref)


def read_meta(connection: Connection) -> MetaRow | None:
    return _only(_read(connection, _META, MetaRow))


def insert_meta(connection: Connection, row: MetaRow) -> None:
    change(connection, sa.insert(meta), [{"id": 1, **row._asdict()}])


def update_meta(connection: Connection, *, old: bytes, new: bytes) -> None:
    """Replaces the store's sealed manifest, if it is still `old`."""
    _touched(connection, _META_UPDATE, {"old": old, "manifest": new}, exactly=1)


def read_slots(connection: Connection) -> list[SlotRow]:
    return _read(connection, _SLOTS, SlotRow)


def insert_slot(connection: Connection, row: SlotRow) -> None:
    change(connection, sa.insert(key_slots), [row._asdict()])


def delete_slot(connection: Connection, slot_id: int) -> None:
    _touched(connection, _SLOT_DELETE, {"the_slot": slot_id}, exactly=1)


def read_embedders(connection: Connection) -> list[EmbedderRow]:
    return _read(connection, _EMBEDDERS, EmbedderRow)


def insert_embedder(connection: Connection, row: EmbedderRow) -> None:
    change(connection, sa.insert(embedders), [row._asdict()])


def delete_embedder(connection: Connection, number: int) -> None:
    _touched(connection, _EMBEDDER_DELETE, {"the_number": number}, exactly=1)


def read_buckets(connection: Connection) -> list[BucketRow]:
    return _read(connection, _BUCKETS, BucketRow)


def read_bucket(connection: Connection, bucket: int) -> BucketRow | None:
    return _only(_read(connection, _BUCKET, BucketRow, the_bucket=bucket))


def insert_bucket(connection: Connection, row: BucketRow) -> None:
    change(connection, sa.insert(directory), [row._asdict()])


def update_bucket(connection: Connection, row: BucketRow) -> None:
    _touched(connection, _BUCKET_UPDATE, {"the_bucket": row.bucket, "sealed": row.sealed}, exactly=1)


def read_users_in(connection: Connection, *, first: bytes, last: bytes) -> list[UserRow]:
    """The users whose references lie from `first` to `last`, both included: those of one bucket."""
    return _read(connection, _USERS_IN, UserRow, first=first, last=last)


def read_seals(connection: Connection, uref: bytes, *, bucket: int) -> tuple[object, object]:
    """The sealed manifests of a user and of the user's bucket as they stand, in one query: both equal to the ones last
    seen means that nothing was written since. The bucket's is there because a user's old row that was put back would
    otherwise look like silence."""
    (row,) = fetch(connection, _SEALS, {"the_uref": uref, "the_bucket": bucket})
    return row[0], row[1]


def insert_user(connection: Connection, row: UserRow) -> None:
    change(connection, sa.insert(users), [row._asdict()])


def update_user(connection: Connection, row: UserRow, *, generation: int) -> None:
    """Replaces the row, if it still is of `generation`."""
    _touched(connection, _USER_UPDATE, {"the_uref": row.uref, "old": generation, **row._asdict()}, exactly=1)


def delete_user(connection: Connection, uref: bytes) -> None:
    _touched(connection, _USER_DELETE, {"the_uref": uref}, exactly=1)


def read_records(connection: Connection, uref: bytes, *, after: int) -> list[RecordRow]:
    """The user's records that were changed after the generation `after`; after 0, all."""
    return _read(connection, _RECORDS, RecordRow, the_uref=uref, after=after)


def read_records_by_id(connection: Connection, uref: bytes, memory_ids: Sequence[bytes]) -> list[RecordRow]:
    """Those of the given records that there are."""
    found: list[RecordRow] = []
    for some in _portions(memory_ids):
        found += _read(connection, _RECORDS_BY_ID, RecordRow, the_uref=uref, memory_ids=some)
    return found


def read_record_ids(connection: Connection, uref: bytes) -> list[bytes]:
    """The ids of all the user's records, in the order in which they were inserted."""
    return [row[0] for row in fetch(connection, _RECORD_IDS, {"the_uref": uref})]


def insert_records(connection: Connection, rows: Sequence[RecordRow]) -> None:
    change(connection, sa.insert(records), [row._asdict() for row in rows])


def update_record(connection: Connection, row: RecordRow) -> None:
    """Replaces one record by what it is now."""
    _touched(connection, _RECORD_UPDATE, {"the_uref": row.uref, "the_id": row.memory_id, **row._asdict()}, exactly=1)


def update_vectors(connection: Connection, rows: Sequence[RecordRow], *, were: Sequence[int]) -> None:
    """Replaces the vectors of records, and what goes with them, if they still are of the versions that they were."""
    values = [
        {
            "the_uref": row.uref, "the_id": row.memory_id, "old": old, "changed": row.changed,
            "vector_version": row.vector_version, "embedder_no": row.embedder_no, "vector": row.vector,
        }
        for row, old in zip(rows, were, strict=True)
    ]  # fmt: skip
    for start in range(0, len(values), _ROWS_A_STATEMENT):
        some = values[start : start + _ROWS_A_STATEMENT]
        _touched(connection, _VECTOR_UPDATE, some, exactly=len(some))


def delete_records(connection: Connection, uref: bytes, memory_ids: Sequence[bytes]) -> None:
    """Deletes exactly these records."""
    for some in _portions(memory_ids):
        _touched(connection, _RECORDS_DELETE, {"the_uref": uref, "memory_ids": some}, exactly=len(some))


def delete_all_records(connection: Connection, uref: bytes, *, count: int, item_count: int) -> None:
    """Deletes all that a user has, which must be so many records and items."""
    _touched(connection, _ALL_RECORDS_DELETE, {"the_uref": uref}, exactly=count)
    _touched(connection, _ALL_ITEMS_DELETE, {"the_uref": uref}, exactly=item_count)


def read_items(connection: Connection, uref: bytes, *, after: int) -> list[ItemRow]:
    """The user's items that were written after the generation `after`; after 0, all. Images without their content."""
    return _read(connection, _ITEMS, ItemRow, the_uref=uref, after=after)


def read_items_by_id(connection: Connection, uref: bytes, *, kind: int, item_ids: Sequence[bytes]) -> list[ItemRow]:
    """Those of the given items that there are. Images without their content."""
    found: list[ItemRow] = []
    for some in _portions(item_ids):
        found += _read(connection, _ITEMS_BY_ID, ItemRow, the_uref=uref, the_kind=kind, item_ids=some)
    return found


def read_item(connection: Connection, uref: bytes, *, kind: int, item_id: bytes) -> ItemRow | None:
    """One item, whole, an image too."""
    return _only(_read(connection, _WHOLE_ITEMS_BY_ID, ItemRow, the_uref=uref, the_kind=kind, item_ids=[item_id]))


def read_items_of_kind(connection: Connection, uref: bytes, *, kind: int) -> list[ItemRow]:
    """The user's items of one kind. Images without their content."""
    return _read(connection, _ITEMS_OF_KIND, ItemRow, the_uref=uref, the_kind=kind)


def read_item_ids(connection: Connection, uref: bytes) -> list[ItemId]:
    """Which items the user has."""
    return _read(connection, _ITEM_IDS, ItemId, the_uref=uref)


def insert_items(connection: Connection, rows: Sequence[ItemRow]) -> None:
    change(connection, sa.insert(items), [row._asdict() for row in rows])


def update_item(connection: Connection, row: ItemRow) -> None:
    """Replaces one item by what it is now."""
    values = {"the_uref": row.uref, "the_kind": row.kind, "the_id": row.item_id, **row._asdict()}
    _touched(connection, _ITEM_UPDATE, values, exactly=1)


def delete_items(connection: Connection, uref: bytes, *, kind: int, item_ids: Sequence[bytes]) -> None:
    """Deletes exactly these items."""
    for some in _portions(item_ids):
        values = {"the_uref": uref, "the_kind": kind, "item_ids": some}
        _touched(connection, _ITEMS_DELETE, values, exactly=len(some))


def count_records(connection: Connection) -> list[RowCount]:
    """How many records each user has, whether or not the user's row is there."""
    return _read(connection, _RECORD_COUNTS, RowCount)


def count_items(connection: Connection) -> list[RowCount]:
    """How many items each user has, whether or not the user's row is there."""
    return _read(connection, _ITEM_COUNTS, RowCount)


def _portions(ids: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [ids[i : i + _IDS_A_STATEMENT] for i in range(0, len(ids), _IDS_A_STATEMENT)]
