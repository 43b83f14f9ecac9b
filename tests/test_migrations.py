"""`memlayer.migrations`: the schema, what may be in it, and that a file with any other is refused."""

from __future__ import annotations

import re
from hashlib import sha256

import pytest
from sqlalchemy.dialects import sqlite

from memlayer import migrations, tables
from memlayer.database import Database
from memlayer.errors import FormatTooNewError, NotAStoreError, StoreDamagedError
from memlayer.migrations import APPLICATION_ID, FORMAT, MAGIC, MIGRATIONS, statements

# Of the text of each released migration: one that is edited makes stores that older and newer versions refuse.
DIGESTS = {1: "d385034065e01f27f0bbfa0615c6971e3229b8422e4ee266aa637cb26da1704e"}


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


# --- The migrations ---


def test_migrations_are_never_edited():
    """Numbered from 1 without a gap, and each to the letter what it was when it was released."""
    assert list(MIGRATIONS) == list(range(1, len(MIGRATIONS) + 1))
    assert {number: sha256("\0".join(MIGRATIONS[number]).encode()).hexdigest() for number in MIGRATIONS} == DIGESTS


def test_the_marks_of_a_store_are_fixed():
    """Magic, format and application id are part of the format."""
    assert (MAGIC, FORMAT, APPLICATION_ID.to_bytes(4)) == (b"memlayer", 1, b"MLY1")


def test_the_schema_brings_no_code_of_its_own():
    """No default, trigger, view, virtual table, generated column or collation: data, and checks of sizes."""
    text = " ".join(statements()).upper()
    for word in ("DEFAULT", "TRIGGER", "VIEW", "VIRTUAL", "GENERATED", "COLLATE", "AUTOINCREMENT", "WITHOUT", "ON "):
        assert not re.search(rf"\b{word}", text.replace("RECORDS_CHANGED ON", ""))
    assert all(statement.startswith(("CREATE TABLE ", "CREATE INDEX ")) for statement in statements())


def test_the_schema_is_sql_that_both_databases_take():
    """Two types only, one of them by the database's own name, and no function but `length`."""
    for blob in ("BLOB", "BYTEA"):
        tables_only = [statement for statement in statements(blob=blob) if statement.startswith("CREATE TABLE")]
        for statement in tables_only:
            columns = [line.split() for line in statement.splitlines()[1:-1] if "PRIMARY KEY (" not in line]
            assert {column[1] for column in columns} <= {"BIGINT", blob}
            assert set(re.findall(r"(\w+)\(", statement)) <= {"length"}
    assert "{" not in " ".join(statements())


def test_every_statement_is_one():
    """No statement holds a second one, a comment or a semicolon."""
    assert not any(";" in statement or "--" in statement for statement in statements())


def test_the_schema_holds_its_sizes(database):
    """Every column of a fixed size has a CHECK of it, and no column may be NULL."""
    with database.read() as connection:
        for table in tables._schema.tables:
            for _, name, _, notnull, _, _ in connection.exec_driver_sql(f"PRAGMA table_info({table})"):
                assert notnull, (table, name)
    text = " ".join(statements())
    for name, size in {"magic": 8, "store_id": 16, "uref": 16, "memory_id": 16, "item_id": 16, "salt": 16}.items():
        assert text.count(f"{name} BLOB NOT NULL") == text.count(f"CHECK (length({name}) = {size})")


# --- A store has this schema and no other ---


def test_the_tables_are_the_migrated_ones(database):
    """Every column that tables.py names is in the schema, in this order and of this type, and none is missing."""
    with database.read() as connection:
        for name, table in tables._schema.tables.items():
            found = connection.exec_driver_sql(f"PRAGMA table_info({name})").fetchall()
            named = [(column.name, column.type.compile(sqlite.dialect())) for column in table.columns]
            assert [(row[1], row[2]) for row in found] == named
        names = connection.exec_driver_sql("SELECT name FROM sqlite_schema WHERE type = 'table'").scalars().all()
        assert set(names) == set(tables._schema.tables)


def test_a_new_schema_is_the_expected_one(database):
    """What was made passes its own check, and carries the marks of a store."""
    with database.read() as connection:
        tables.check_schema(connection)
        assert connection.exec_driver_sql("PRAGMA application_id").scalar() == 0x4D4C5931
        assert connection.exec_driver_sql("PRAGMA user_version").scalar() == 1


FOREIGN = {
    "table": "CREATE TABLE more (x)",
    "view": "CREATE VIEW more AS SELECT * FROM users",
    "trigger": "CREATE TRIGGER more AFTER INSERT ON users BEGIN DELETE FROM records; END",
    "index": "CREATE INDEX more ON records (seq)",
    "second index of the same columns": "CREATE INDEX more ON records (uref, changed)",
    "virtual table": "CREATE VIRTUAL TABLE more USING fts5(x)",
    "column": "ALTER TABLE users ADD COLUMN more",
    "renamed column": "ALTER TABLE items RENAME COLUMN sealed TO opened",
    "table gone": "DROP TABLE items",
    "index gone": "DROP INDEX records_changed",
    "statistics": "ANALYZE",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_schema_is_refused(database, name):
    """A table, view, trigger, index or column more or fewer than the migrations make is no store of ours."""
    with database.write() as connection:
        connection.exec_driver_sql(FOREIGN[name])
    with database.read() as connection, pytest.raises(StoreDamagedError):
        tables.check_schema(connection)


@pytest.mark.parametrize("old_and_new", [("NOT NULL", ""), ("sk_epoch", "sk_epoche"), ("CHECK (id = 1)", "DEFAULT 1"),
                                         ("    ", "  "), ("REFERENCES users (uref)", "")], ids=range(5))  # fmt: skip
def test_a_schema_in_other_words_is_refused(tmp_path, old_and_new):
    """The text of the schema is compared to the letter."""
    database = opened(tmp_path / "other.db")
    with database.write() as connection:
        for statement in migrations.statements():
            connection.exec_driver_sql(statement.replace(*old_and_new))
        connection.exec_driver_sql(f"PRAGMA application_id = {migrations.APPLICATION_ID}")
        connection.exec_driver_sql("PRAGMA user_version = 1")
        with pytest.raises(StoreDamagedError):
            tables.check_schema(connection)
    database.close()


@pytest.mark.parametrize(
    ("pragma", "error"),
    [
        ("application_id = 0", NotAStoreError),
        ("application_id = 1296849202", NotAStoreError),
        ("user_version = 2", FormatTooNewError),
        ("user_version = 0", FormatTooNewError),
        ("user_version = -1", FormatTooNewError),
    ],
)
def test_another_mark_is_told_apart(database, pragma, error):
    """Another application's database is no store; another version's is one of a later memlayer."""
    with database.write() as connection:
        connection.exec_driver_sql(f"PRAGMA {pragma}")
    with database.read() as connection, pytest.raises(error):
        tables.check_schema(connection)


def test_an_empty_database_is_no_store(tmp_path):
    """A file of no bytes is not taken for a store that is to be database."""
    database = opened(tmp_path / "empty.db")
    with database.read() as connection, pytest.raises(NotAStoreError):
        tables.check_schema(connection)
    database.close()
