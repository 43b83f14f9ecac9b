"""`memlayer.tables`: rows in and out, in a real SQLite file; of a damaged one nothing gets through unchecked."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from memlayer import tables
from memlayer.database import Database
from memlayer.errors import StorageError, StoreDamagedError
from memlayer.rows import SIZES, TYPES
from memlayer.tables import BucketRow, EmbedderRow, ItemId, ItemRow, MetaRow, RecordRow, RowCount, SlotRow, UserRow

ALICE, BOB = b"\x12\x34" + b"a" * 14, b"\x12\x3f" + b"b" * 14
META = MetaRow(b"memlayer", 1, b"s" * 16, 1, b"c" * 32, b"i" * 66, b"m" * 586)
SLOT = SlotRow(1, 1, 2, 0, 0, 0, b"s" * 16, b"c" * 32, b"k" * 66)
EMBEDDER = EmbedderRow(1, b"sealed identity")
BUCKET = BucketRow(0x123, b"b" * 82)
USER = UserRow(ALICE, 1, 1, b"c" * 16, 1, b"d" * 66, b"m" * 106, b"sealed profile")
RECORD = RecordRow(ALICE, b"1" * 16, 0, 1, 1, 1, 1, 1, b"sealed text", b"sealed vector")

ITEM = ItemRow(ALICE, 2, b"1" * 16, 1, 1, b"sealed item")


def item(number, *, uref=ALICE, kind=2, **changes):
    return ITEM._replace(uref=uref, kind=kind, item_id=number.to_bytes(16), **changes)


def record(number, *, uref=ALICE, **changes):
    return RECORD._replace(uref=uref, memory_id=number.to_bytes(16), seq=number, **changes)


def opened(path, content=b""):
    path.write_bytes(content)
    return Database(path)


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    """The bytes of a database with the schema and nothing in it."""
    database = opened(tmp_path_factory.mktemp("schema") / "store.db")
    with database.write() as connection:
        tables.make_schema(connection)
    database.close()
    return database.path.read_bytes()


@pytest.fixture
def database(tmp_path, schema):
    """A database with the schema and nothing in it."""
    database = opened(tmp_path / "store.db", schema)
    yield database
    database.close()


@pytest.fixture
def filled(database):
    """One row of everything, and three records and items."""
    with database.write() as connection:
        tables.insert_meta(connection, META)
        tables.insert_slot(connection, SLOT)
        tables.insert_embedder(connection, EMBEDDER)
        tables.insert_bucket(connection, BUCKET)
        tables.insert_user(connection, USER)
        tables.insert_records(connection, [record(1), record(2, changed=2), record(3, changed=3)])
        tables.insert_items(connection, [item(1), item(2, version=2), item(1, kind=3, version=3)])
    return database


@pytest.fixture(scope="module")
def lawless_database(tmp_path_factory):
    """The same tables without a constraint, a key or a type: what a damaged file can hold."""
    database = opened(tmp_path_factory.mktemp("lawless") / "store.db")
    with database.write() as connection:
        for table in tables._schema.tables.values():
            connection.exec_driver_sql(f"CREATE TABLE {table.name} ({', '.join(table.columns.keys())})")
    yield database
    database.close()


class Undo(Exception):
    """Ends a transaction that is not to be committed."""


@pytest.fixture
def lawless(lawless_database):
    """A transaction in those tables, empty at first and undone at the end."""
    with contextlib.suppress(Undo), lawless_database.write() as connection:
        yield connection
        raise Undo


def put(connection, table, row, **changes):
    """Writes a row as it is, past everything that tables.py would do to it."""
    values = {**({"id": 1} if table == "meta" else {}), **row._asdict(), **changes}
    marks = ", ".join("?" * len(values))
    connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({marks})", tuple(values.values()))


# --- What goes in comes out ---


def test_every_row_comes_back_as_it_was_written(filled):
    """Each table's rows are read as they were inserted, in their types."""
    with filled.read() as connection:
        assert tables.read_meta(connection) == META
        assert tables.read_slots(connection) == [SLOT]
        assert tables.read_embedders(connection) == [EMBEDDER]
        assert tables.read_buckets(connection) == [BUCKET]
        assert tables.read_bucket(connection, BUCKET.bucket) == BUCKET
        assert tables.read_users_in(connection, first=ALICE, last=ALICE) == [USER]
        assert tables.read_records(connection, ALICE, after=0) == [record(n, changed=n) for n in (1, 2, 3)]
        items = [item(1), item(2, version=2), item(1, kind=3, version=3)]
        assert sorted(tables.read_items(connection, ALICE, after=0)) == sorted(items)
        assert tables.read_seals(connection, ALICE, bucket=BUCKET.bucket) == (USER.manifest, BUCKET.sealed)


def test_what_is_not_there_is_none_or_nothing(database):
    """An empty store has no row of anything, and that is no error of this layer."""
    with database.read() as connection:
        assert tables.read_meta(connection) is None
        assert tables.read_bucket(connection, 7) is None
        assert tables.read_slots(connection) == []
        assert tables.read_embedders(connection) == []
        assert tables.read_buckets(connection) == []
        assert tables.read_users_in(connection, first=bytes(16), last=b"\xff" * 16) == []
        assert tables.read_records(connection, ALICE, after=0) == []
        assert tables.read_record_ids(connection, ALICE) == []
        assert tables.read_records_by_id(connection, ALICE, [bytes(16)]) == []
        assert tables.read_records_by_id(connection, ALICE, []) == []
        assert tables.read_items(connection, ALICE, after=0) == []
        assert tables.read_item_ids(connection, ALICE) == []
        assert tables.read_seals(connection, ALICE, bucket=7) == (None, None)
        assert tables.count_records(connection) == tables.count_items(connection) == []


def test_rows_come_in_the_order_of_their_numbers(database):
    """Slots, embedders and buckets come by number, record ids by insertion, whatever the file's order is."""
    with database.write() as connection:
        tables.insert_user(connection, USER)
        for number in (3, 1, 2):
            tables.insert_slot(connection, SLOT._replace(slot_id=number))
            tables.insert_embedder(connection, EMBEDDER._replace(embedder_no=number))
            tables.insert_bucket(connection, BUCKET._replace(bucket=number))
        tables.insert_records(connection, [record(n)._replace(seq=9 - n) for n in (1, 2, 3)])
        assert [row.slot_id for row in tables.read_slots(connection)] == [1, 2, 3]
        assert [row.embedder_no for row in tables.read_embedders(connection)] == [1, 2, 3]
        assert [row.bucket for row in tables.read_buckets(connection)] == [1, 2, 3]
        assert [int.from_bytes(own) for own in tables.read_record_ids(connection, ALICE)] == [3, 2, 1]


def test_users_of_a_bucket_are_a_range(filled):
    """Both ends are included, and who is outside of them is not there."""
    with filled.write() as connection:
        tables.insert_user(connection, USER._replace(uref=BOB))
        both = tables.read_users_in(connection, first=b"\x12\x30" + bytes(14), last=b"\x12\x3f" + b"\xff" * 14)
        assert {row.uref for row in both} == {ALICE, BOB}
        assert [row.uref for row in tables.read_users_in(connection, first=ALICE, last=BOB[:-1])] == [ALICE]
        assert [row.uref for row in tables.read_users_in(connection, first=BOB, last=BOB)] == [BOB]


def test_records_are_read_by_user_generation_and_id(filled):
    """Only the user's own, only after a generation, or only those that were asked for."""
    with filled.write() as connection:
        tables.insert_user(connection, USER._replace(uref=BOB))
        tables.insert_records(connection, [record(1, uref=BOB)])
        assert {row.seq for row in tables.read_records(connection, ALICE, after=1)} == {2, 3}
        assert tables.read_records(connection, ALICE, after=3) == []
        assert tables.read_records(connection, BOB, after=0) == [record(1, uref=BOB)]
        wanted = [n.to_bytes(16) for n in (3, 1, 9)]
        assert {row.seq for row in tables.read_records_by_id(connection, ALICE, wanted)} == {1, 3}
        assert tables.read_record_ids(connection, BOB) == [(1).to_bytes(16)]
        assert sorted(tables.count_records(connection)) == [RowCount(ALICE, 3), RowCount(BOB, 1)]


def test_items_are_read_by_user_and_generation(filled):
    """Only the user's own, of all kinds, and only those after a generation."""
    with filled.write() as connection:
        tables.insert_user(connection, USER._replace(uref=BOB))
        tables.insert_items(connection, [item(1, uref=BOB), item(7, uref=BOB, version=9)])
        assert sorted(tables.read_items(connection, ALICE, after=1)) == [item(2, version=2), item(1, kind=3, version=3)]
        assert tables.read_items(connection, ALICE, after=3) == []
        assert tables.read_items(connection, BOB, after=8) == [item(7, uref=BOB, version=9)]
        assert sorted(tables.read_item_ids(connection, ALICE)) == [
            ItemId(2, (1).to_bytes(16)), ItemId(2, (2).to_bytes(16)), ItemId(3, (1).to_bytes(16)),
        ]  # fmt: skip
        assert sorted(tables.count_items(connection)) == [RowCount(ALICE, 3), RowCount(BOB, 2)]


def test_more_ids_than_one_statement_takes(filled):
    """Thousands of ids go in several statements, for reading as for deleting."""
    many = [n.to_bytes(16) for n in range(10, 2_510)]
    with filled.write() as connection:
        tables.insert_records(connection, [record(int.from_bytes(own)) for own in many])
        assert {row.memory_id for row in tables.read_records_by_id(connection, ALICE, many)} == set(many)
        tables.delete_records(connection, ALICE, many)
        assert tables.count_records(connection) == [RowCount(ALICE, 3)]
        tables.insert_items(connection, [item(int.from_bytes(own)) for own in many])
        tables.delete_items(connection, ALICE, kind=2, item_ids=many)
        tables.delete_items(connection, ALICE, kind=2, item_ids=[])
        assert tables.count_items(connection) == [RowCount(ALICE, 3)]


def test_the_largest_numbers_come_back(database):
    """64-bit numbers are not cut on their way."""
    with database.write() as connection:
        tables.insert_user(connection, USER)
        largest = RECORD._replace(seq=2**63 - 1, dek_epoch=2**63 - 1, changed=2**63 - 1, embedder_no=2**63 - 1)
        tables.insert_records(connection, [largest])
        assert tables.read_records(connection, ALICE, after=2**63 - 2) == [largest]
        largest_item = ITEM._replace(kind=2**63 - 1, dek_epoch=2**63 - 1, version=2**63 - 1)
        tables.insert_items(connection, [largest_item])
        assert tables.read_items(connection, ALICE, after=2**63 - 2) == [largest_item]
        assert tables.read_item_ids(connection, ALICE) == [ItemId(2**63 - 1, ITEM.item_id)]


# --- A change says how many rows it must touch ---


def test_changes_change_what_they_name(filled):
    """Each update and delete does what it says, to its own row."""
    with filled.write() as connection:
        tables.update_meta(connection, old=META.manifest, new=b"n" * 586)
        tables.insert_slot(connection, SLOT._replace(slot_id=2))
        tables.delete_slot(connection, 1)
        tables.update_bucket(connection, BUCKET._replace(sealed=b"n" * 82))
        tables.insert_user(connection, USER._replace(uref=BOB))
        tables.update_user(connection, USER._replace(generation=2, manifest=b"n" * 106), generation=1)
        tables.update_record(connection, record(2, text=b"another"))
        tables.delete_records(connection, ALICE, [record(1).memory_id])
        tables.insert_items(connection, [item(1, uref=BOB)])
        tables.update_item(connection, item(1, version=4, sealed=b"another"))
        tables.delete_items(connection, ALICE, kind=2, item_ids=[item(2).item_id])
    with filled.read() as connection:
        assert tables.read_meta(connection) == META._replace(manifest=b"n" * 586)
        assert tables.read_slots(connection) == [SLOT._replace(slot_id=2)]
        assert tables.read_buckets(connection) == [BUCKET._replace(sealed=b"n" * 82)]
        assert tables.read_seals(connection, ALICE, bucket=BUCKET.bucket) == (b"n" * 106, b"n" * 82)
        assert tables.read_seals(connection, BOB, bucket=0) == (USER.manifest, None)
        assert tables.read_records(connection, ALICE, after=0) == [record(2, text=b"another"), record(3, changed=3)]
        assert tables.read_items(connection, BOB, after=0) == [item(1, uref=BOB)]
        assert sorted(tables.read_items(connection, ALICE, after=0)) == [
            item(1, version=4, sealed=b"another"), item(1, kind=3, version=3),
        ]  # fmt: skip


CHANGES: dict[str, Any] = {
    "another manifest": lambda c: tables.update_meta(c, old=b"x" * 586, new=b"n" * 586),
    "no such slot": lambda c: tables.delete_slot(c, 9),
    "no such bucket": lambda c: tables.update_bucket(c, BUCKET._replace(bucket=9)),
    "another generation": lambda c: tables.update_user(c, USER._replace(generation=9), generation=8),
    "no such user": lambda c: tables.update_user(c, USER._replace(uref=BOB), generation=1),
    "no user to delete": lambda c: tables.delete_user(c, BOB),
    "no such record": lambda c: tables.update_record(c, record(9)),
    "another user's record": lambda c: tables.update_record(c, record(1, uref=BOB)),
    "one of two records": lambda c: tables.delete_records(c, ALICE, [record(1).memory_id, bytes(16)]),
    "the same record twice": lambda c: tables.delete_records(c, ALICE, [record(1).memory_id] * 2),
    "another user's records": lambda c: tables.delete_records(c, BOB, [record(1).memory_id]),
    "one record too many": lambda c: tables.delete_all_records(c, ALICE, count=2, item_count=3),
    "one record too few": lambda c: tables.delete_all_records(c, ALICE, count=4, item_count=3),
    "one item too many": lambda c: tables.delete_all_records(c, ALICE, count=3, item_count=2),
    "one item too few": lambda c: tables.delete_all_records(c, ALICE, count=3, item_count=4),
    "no such item": lambda c: tables.update_item(c, item(9)),
    "another user's item": lambda c: tables.update_item(c, item(1, uref=BOB)),
    "another kind's item": lambda c: tables.update_item(c, item(2, kind=3)),
    "one of two items": lambda c: tables.delete_items(c, ALICE, kind=2, item_ids=[item(1).item_id, bytes(16)]),
    "one of two items of the kind": lambda c: tables.delete_items(
        c, ALICE, kind=3, item_ids=[item(1).item_id, item(2).item_id]
    ),
    "the same item twice": lambda c: tables.delete_items(c, ALICE, kind=2, item_ids=[item(1).item_id] * 2),
    "another user's items": lambda c: tables.delete_items(c, BOB, kind=2, item_ids=[item(1).item_id]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_another_number_of_rows_is_undone(filled, name):
    """A change that does not touch exactly what it was meant to raises, and its transaction leaves no trace."""

    def everything(connection):
        return [connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
                for table in tables._schema.tables]  # fmt: skip

    with filled.read() as connection:
        before = everything(connection)
    with pytest.raises(StoreDamagedError) as caught, filled.write() as connection:
        CHANGES[name](connection)
    assert caught.value.evidence.keys() == {"expected", "touched"}
    with filled.read() as connection:
        assert everything(connection) == before


def test_a_user_is_deleted_with_all_there_is(filled):
    """Records, items and then the user; other users stay."""
    with filled.write() as connection:
        tables.insert_user(connection, USER._replace(uref=BOB))
        tables.insert_records(connection, [record(1, uref=BOB)])
        tables.insert_items(connection, [item(1, uref=BOB)])
        assert sorted(tables.count_items(connection)) == [RowCount(ALICE, 3), RowCount(BOB, 1)]
        tables.delete_all_records(connection, ALICE, count=3, item_count=3)
        tables.delete_user(connection, ALICE)
    with filled.read() as connection:
        assert tables.count_records(connection) == tables.count_items(connection) == [RowCount(BOB, 1)]
        assert [row.uref for row in tables.read_users_in(connection, first=ALICE, last=BOB)] == [BOB]


INTRUDERS: dict[str, Any] = {
    "a second meta row": lambda c: tables.insert_meta(c, META),
    "a slot of a number that is taken": lambda c: tables.insert_slot(c, SLOT),
    "a user who is there": lambda c: tables.insert_user(c, USER),
    "a record that is there": lambda c: tables.insert_records(c, [record(4), record(1)]),
    "a record of nobody": lambda c: tables.insert_records(c, [record(4, uref=BOB)]),
    "a user with records, deleted": lambda c: tables.delete_user(c, ALICE),
    "a short salt": lambda c: tables.insert_slot(c, SLOT._replace(slot_id=2, salt=b"short")),
    "a long reference": lambda c: tables.insert_user(c, USER._replace(uref=BOB + b"\0")),
    "a bucket of no such number": lambda c: tables.insert_bucket(c, BUCKET._replace(bucket=4096)),
    "no text": lambda c: tables.insert_records(c, [record(4, text=None)]),
    "an item that is there": lambda c: tables.insert_items(c, [item(4), item(1)]),
    "an item of nobody": lambda c: tables.insert_items(c, [item(4, uref=BOB)]),
    "a short item id": lambda c: tables.insert_items(c, [ITEM._replace(item_id=b"short")]),
    "nothing sealed": lambda c: tables.insert_items(c, [item(4, sealed=None)]),
}


@pytest.mark.parametrize("name", INTRUDERS)
def test_the_schema_refuses_what_must_not_be(filled, name):
    """Keys, lengths and references are held by the database too, and the error is one of ours without the values."""
    with pytest.raises(StoreDamagedError) as caught, filled.write() as connection:
        INTRUDERS[name](connection)
    assert caught.value.evidence == {"sqlite": caught.value.evidence["sqlite"]}
    assert caught.value.__cause__ is None


# --- Rows of a damaged file ---

READERS: dict[str, Any] = {
    "meta": (META, tables.read_meta),
    "key_slots": (SLOT, tables.read_slots),
    "embedders": (EMBEDDER, tables.read_embedders),
    "directory": (BUCKET, tables.read_buckets),
    "users": (USER, lambda c: tables.read_users_in(c, first=b"", last=b"\xff" * 17)),
    "records": (RECORD, lambda c: tables.read_records(c, ALICE, after=0)),
    "items": (ITEM, lambda c: tables.read_items(c, ALICE, after=0)),
}
CELLS = [(table, column) for table, (row, _) in READERS.items() for column in row._fields]


@pytest.mark.parametrize(("table", "column"), CELLS)
def test_a_cell_of_another_type_is_refused(lawless, table, column):
    """NULL, text, a float, bytes for a number, a number for bytes, a negative number: each is damage."""
    row, read = READERS[table]
    right = getattr(row, column)
    wrong = [None, "text", "\0" * 16, 1.0, 2.0**63, -1, -(2**63), b"\1" * 8 if isinstance(right, int) else 16]
    if (table, column) in (("records", "uref"), ("items", "uref")):
        return  # The question itself: what is not the user's reference is not the user's row.
    if (table, column) in (("records", "changed"), ("items", "version"), ("users", "uref")):
        # Compared in the query: SQLite sorts NULL, and numbers below, out of the answer, and the manifest misses them.
        wrong = ["text", "\0" * 16, b"\1" * 8] if column != "uref" else []
    for value in wrong:
        put(lawless, table, row, **{column: value})
        with pytest.raises(StoreDamagedError) as caught:
            read(lawless)
        assert caught.value.evidence == {"row": type(row).__name__}
        lawless.exec_driver_sql(f"DELETE FROM {table}")


@pytest.mark.parametrize(("table", "column"), [
    ("meta", "store_id"), ("meta", "magic"), ("meta", "commitment"), ("meta", "manifest"), ("key_slots", "salt"),
    ("key_slots", "commitment"), ("directory", "sealed"), ("users", "uref"), ("users", "commitment"),
    ("users", "data_key"), ("users", "manifest"), ("records", "memory_id"), ("items", "item_id"),
])  # fmt: skip
def test_a_cell_of_another_size_is_refused(lawless, table, column):
    """What has a fixed size in the format, and another one in the file, is damage."""
    row, read = READERS[table]
    for value in (getattr(row, column) + b"\0", getattr(row, column)[:-1], b""):
        put(lawless, table, row, **{column: value})
        with pytest.raises(StoreDamagedError):
            read(lawless)
        lawless.exec_driver_sql(f"DELETE FROM {table}")


def test_a_count_of_a_damaged_table_is_checked(lawless):
    """A user reference that is no bytes is refused where rows are counted, too."""
    put(lawless, "records", RECORD, uref="text")
    with pytest.raises(StoreDamagedError):
        tables.count_records(lawless)
    put(lawless, "items", ITEM, uref=b"short")
    with pytest.raises(StoreDamagedError):
        tables.count_items(lawless)


@pytest.mark.parametrize("changes", [
    {"kind": None}, {"kind": "2"}, {"kind": -1}, {"kind": 2.0}, {"item_id": None}, {"item_id": "1" * 16},
    {"item_id": b"1" * 15}, {"item_id": b"1" * 17},
], ids=str)  # fmt: skip
def test_a_list_of_a_damaged_table_is_checked(lawless, changes):
    """The kinds and ids of items are of their types and widths where nothing else of the rows is read, too."""
    put(lawless, "items", ITEM, **changes)
    with pytest.raises(StoreDamagedError) as caught:
        tables.read_item_ids(lawless, ALICE)
    assert caught.value.evidence == {"row": "ItemId"}


def test_two_rows_where_one_can_be_are_refused(lawless):
    """A second meta row, or a second row of one bucket, is damage."""
    put(lawless, "meta", META)
    put(lawless, "meta", META)
    put(lawless, "directory", BUCKET)
    put(lawless, "directory", BUCKET._replace(sealed=b"x" * 82))
    for read in (tables.read_meta, lambda c: tables.read_bucket(c, BUCKET.bucket)):
        with pytest.raises(StoreDamagedError) as caught:
            read(lawless)
        assert caught.value.evidence == {"rows": 2}


def test_text_that_is_no_utf_8_is_an_error_of_ours(lawless):
    """What the driver cannot decode comes out as a storage error, without the text."""
    lawless.exec_driver_sql("INSERT INTO embedders VALUES (1, CAST(x'ff4341' AS TEXT))")
    with pytest.raises(StorageError) as caught:
        tables.read_embedders(lawless)
    assert "CA" not in str(caught.value)


# --- The rows and their tables ---


def test_row_types_name_the_columns():
    """Each row type has the columns of its table, in their order; meta's constant id apart."""
    for table, (row, _) in READERS.items():
        columns = [column.name for column in tables._schema.tables[table].columns if column.name != "id"]
        assert list(row._fields) == columns


def test_each_row_type_says_its_types_and_its_sizes():
    """Each column is a number or bytes, and those of one size are columns that are bytes; nothing is left unchecked."""
    assert TYPES.keys() == SIZES.keys() == {getattr(tables, name) for name in tables.__all__}
    row: Any
    for row, types in TYPES.items():
        assert len(types) == len(row._fields)
        assert set(types) <= {int, bytes}
        assert all(types[row._fields.index(name)] is bytes for name in SIZES[row])
