"""`memlayer.database`: what its failures are called, and that none repeats what was in the statement."""

from __future__ import annotations

import contextlib
import os
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlcipher3 import dbapi2 as driver

from memlayer import database as module
from memlayer.database import Database, change, fetch
from memlayer.errors import (
    NotAStoreError,
    ReadOnlyStoreError,
    StorageError,
    StorageFullError,
    StoreBusyError,
    StoreDamagedError,
    StoreMissingError,
)

CANARY = b"canary-content-canary"
INSERT = sa.text("INSERT INTO things (name, content) VALUES (:name, :content)")
COUNT = sa.text("SELECT count(*) FROM things")


def opened(path, **options):
    path.touch()
    return Database(path, **options)


@pytest.fixture
def database(tmp_path):
    """A database with one table."""
    database = opened(tmp_path / "store.db")
    with database.write() as connection:
        change(connection, sa.text("CREATE TABLE things (name PRIMARY KEY, content BLOB, CHECK (name <> 'no'))"))
    yield database
    database.close()


@contextlib.contextmanager
def another(database, begin):
    """A connection of somebody else, in the middle of a transaction."""
    connection = driver.connect(str(database.path), isolation_level=None, timeout=0)
    try:
        connection.execute(begin)
        connection.execute("SELECT count(*) FROM things").fetchone()
        yield connection
    finally:
        connection.close()


def add(connection, name, content=b""):
    return change(connection, INSERT, [{"name": name, "content": content}])


def count(database):
    with database.read() as connection:
        return fetch(connection, COUNT)[0][0]


def test_a_busy_database_is_waited_for_and_then_told(database, monkeypatch):
    """While another writes, a writer waits as long as it is told to, and fails with a name; readers go on."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT_SECONDS", 0.05)
    with another(database, "BEGIN IMMEDIATE"):
        with pytest.raises(StoreBusyError) as caught, database.write():
            pass
        assert caught.value.evidence == {"sqlite": 5}
        assert count(database) == 0
    with database.write() as connection:
        add(connection, "a")


def test_a_writer_gets_its_turn_when_the_other_is_done(database):
    """A writer that waits goes on by itself once the other has committed."""
    with ThreadPoolExecutor(1) as thread:
        with another(database, "BEGIN IMMEDIATE") as connection:

            def write():
                with database.write() as own:
                    return add(own, "a")

            waiting = thread.submit(write)
            connection.execute("INSERT INTO things VALUES ('b', x'')")
            connection.execute("COMMIT")
        assert waiting.result() == 1
    assert count(database) == 2


def test_a_full_disk_is_told_and_nothing_is_lost(database):
    """No room: an error with a name, everything earlier is there, and after room was made the same write passes."""
    with database.write() as connection:
        add(connection, "kept", CANARY)

    def large():
        with database.write() as connection:
            for number in range(20):
                add(connection, number, bytes(8_000))

    with database.read() as connection:  # this connection is the pool's next
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(StorageFullError) as caught:
        large()
    assert caught.value.evidence == {"sqlite": 13}
    assert count(database) == 1
    database.pragma("PRAGMA max_page_count = 1000000")
    large()
    assert count(database) == 21


def test_a_damaged_page_is_told(database):
    """A page of garbage in the middle of the file is damage, however the query meets it."""
    with database.write() as connection:
        for number in range(200):
            add(connection, number, CANARY * 20)
    database.close()
    content = bytearray(database.path.read_bytes())
    for page in range(2, len(content) // 8192):
        content[page * 8192 : page * 8192 + 4000] = os.urandom(4000)
    database.path.write_bytes(content)
    damaged = Database(database.path)
    with pytest.raises(StoreDamagedError) as caught, damaged.read() as connection:
        fetch(connection, sa.text("SELECT sum(length(content)), max(name) FROM things"))
    assert caught.value.evidence == {"sqlite": 11}
    damaged.close()


@pytest.mark.parametrize(("content", "mode"), [(b"text " * 1000, "rw"), (b"text " * 1000, "ro"), (b"x" * 512, "ro")])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path, content, mode):
    """What is no database is told from a damaged one, and not a byte of it changes."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    database = Database(path, mode=mode)
    with pytest.raises(NotAStoreError):
        database.pragma("PRAGMA user_version")
    database.close()
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_opened_is_told(tmp_path):
    """Nothing there, or a folder: an error with the driver's number, and nothing is made."""
    for name in ("missing.db", "."):
        database = Database(tmp_path / name)
        with pytest.raises(StorageError) as caught:
            database.pragma("PRAGMA user_version")
        assert caught.value.evidence == {"sqlite": 14}
        database.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everything")
def test_a_file_without_rights_is_told(tmp_path):
    """A file and a folder that cannot be written give a store that cannot be written."""
    database = opened(tmp_path / "store.db")
    database.path.chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ReadOnlyStoreError), database.write():
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_replaced_file_is_not_written_to(database, tmp_path):
    """When the file was removed, or another was put in its place, a write is refused instead of lost."""
    original = database.path.rename(tmp_path / "elsewhere.db")
    for content in (None, b""):
        if content is not None:
            database.path.write_bytes(content)
        with pytest.raises(StoreMissingError), database.write() as connection:
            add(connection, "a")
    database.path.unlink()
    original.rename(database.path)
    with database.write() as connection:
        add(connection, "a")


FAILURES: dict[str, tuple[Any, Any, type[StorageError]]] = {
    "a constraint": (INSERT, {"name": "no", "content": CANARY}, StoreDamagedError),
    "a duplicate": (INSERT, {"name": "a", "content": CANARY}, StoreDamagedError),
    "no such column": (sa.text("SELECT nothing, :name, :content FROM things"), {"name": 1, "content": CANARY},
                       StoreDamagedError),
    "no type of SQLite's": (INSERT, {"name": "b", "content": [CANARY]}, StorageError),
    "a number too large": (INSERT, {"name": 2**64, "content": CANARY}, StoreDamagedError),
    "a lone surrogate": (INSERT, {"name": "canary-content-canary\ud800", "content": CANARY}, StoreDamagedError),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_does_not_repeat_what_was_bound(database, name):
    """The error of a failed statement is one of ours; neither it nor its printed traceback holds a bound value."""
    statement, values, kind = FAILURES[name]
    with database.write() as connection:
        add(connection, "a")
    with pytest.raises(kind) as caught, database.write() as connection:
        change(connection, statement, [values])
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + str(dict(caught.value.evidence))
    assert "canary-content" not in shown
    assert "INSERT" not in str(caught.value)
    assert caught.value.__cause__ is None
    # Not shown, but there: what the library said, and it does not repeat the values either.
    assert "canary-content" not in str(caught.value.__context__)
    assert count(database) == 1


def test_a_row_that_cannot_be_read_is_damage(database):
    """Text that is no UTF-8 makes the driver fail in its own way, and comes out as a storage error."""
    with pytest.raises(StorageError), database.read() as connection:
        fetch(connection, sa.text("SELECT CAST(x'ff4341' AS TEXT)"))
