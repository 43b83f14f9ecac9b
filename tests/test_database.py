"""`memlayer.database`: settings that are in force, transactions that end, and failures that have names."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlcipher3 import dbapi2 as driver

from memlayer import database as module
from memlayer.database import Database, change, fetch
from memlayer.errors import (
    ReadOnlyStoreError,
    StorageError,
    StoreClosedError,
    StoreDamagedError,
)

ROOT = Path(__file__).parent.parent
CANARY = b"canary-content-canary"
SETTINGS = {
    "secure_delete": 1, "temp_store": 2, "synchronous": 2, "foreign_keys": 1, "trusted_schema": 0,
    "cell_size_check": 1, "fullfsync": 1, "checkpoint_fullfsync": 1, "mmap_size": 0,
    "journal_size_limit": 64 * 1024 * 1024, "journal_mode": "wal", "page_size": 8192,
}  # fmt: skip
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


# --- Settings ---


def answers(connection):
    return {name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in SETTINGS}


def test_every_connection_has_its_settings(database):
    """Connections of the pool, connections beyond it, and those that come back from it: all answer the same."""
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(database.read()) for _ in range(7)]
            assert [answers(connection) for connection in connections] == [SETTINGS] * 7


def test_a_reader_has_the_settings_too(database):
    """A connection that cannot write is as careful with temporary files and foreign schemas."""
    for mode in ("ro", "immutable"):
        reader = Database(database.path, mode=mode)
        with reader.read() as connection:
            found = answers(connection)
        assert found | {"journal_mode": "wal"} == SETTINGS
        reader.close()


def test_a_setting_that_is_not_taken_is_an_error(tmp_path, monkeypatch):
    """A driver that was built without a setting is refused; nothing is assumed."""
    monkeypatch.setattr(module, "_SETTINGS", {"secure_delete": 7})
    database = opened(tmp_path / "store.db")
    with pytest.raises(StorageError, match="secure_delete=7"):
        database.pragma("PRAGMA user_version")
    database.close()


@pytest.mark.skipif(os.name != "posix", reason="a file system of SQLite's for POSIX")
def test_a_database_without_a_write_ahead_log_is_refused(tmp_path):
    """Where SQLite cannot share a log, and says so by an answer and not by an error, nothing is written."""
    connection = driver.connect(f"file:{tmp_path}/store.db?vfs=unix-none", uri=True, isolation_level=None)
    with pytest.raises(ReadOnlyStoreError, match="write-ahead"):
        module._configure(connection, writable=True)
    connection.close()


def test_deleted_content_is_gone_from_the_files(database):
    """After a delete and a checkpoint no byte of it is in any file of the database."""
    with database.write() as connection:
        for number in range(50):
            add(connection, number, CANARY * 100)
    with database.write() as connection:
        change(connection, sa.text("DELETE FROM things WHERE name > 0"))
        change(connection, sa.text("UPDATE things SET content = x''"))
    assert database.checkpoint()
    database.close()
    for file in database.path.parent.iterdir():
        assert CANARY not in file.read_bytes()


@pytest.mark.parametrize("name", ["a b", "100%", "what?mode=memory", "a#b", "it's", "ü-\U0001f95c", "%41", "a&b"])
def test_any_file_name_is_taken_as_it_is(tmp_path, name):
    """What SQLite's URIs and statements would read as syntax is only a name; a copy's name, too."""
    (tmp_path / "folder?").mkdir()
    database = opened(tmp_path / "folder?" / name)
    with database.write() as connection:
        change(connection, sa.text("CREATE TABLE things (name)"))
    database.vacuum_into(tmp_path / "folder?" / f"copy of {name}")
    database.close()
    assert {file.name for file in (tmp_path / "folder?").iterdir()} == {name, f"copy of {name}"}
    assert [file.name for file in tmp_path.iterdir()] == ["folder?"]
    assert (tmp_path / "folder?" / name).stat().st_size


# --- Transactions ---


def test_a_write_is_there_when_the_block_ends(database):
    """A change tells how many rows it touched, and another connection sees it after the block, not before."""
    with database.write() as connection:
        assert add(connection, "a") == 1
        assert change(connection, INSERT, [{"name": n, "content": b""} for n in "bc"]) == 2
        assert count(database) == 0
    assert count(database) == 3
    with another(database, "BEGIN") as connection:
        assert connection.execute("SELECT count(*) FROM things").fetchone() == (3,)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_error_undoes_the_block(database, error):
    """Whatever ends the block, it comes out as it is, nothing of the block stays, and the next one works."""

    def interrupted():
        with database.write() as connection:
            add(connection, "a")
            raise error

    with pytest.raises(error):
        interrupted()
    with pytest.raises(error), database.read():
        raise error
    assert count(database) == 0
    with database.write() as connection:
        add(connection, "a")
    assert count(database) == 1


def test_a_transaction_that_is_gone_is_not_given_back_to_the_pool(database):
    """A connection whose rollback fails is thrown away; the first error is the one that is told."""
    with database.read() as connection:
        before = connection.connection.dbapi_connection
    with pytest.raises(StoreDamagedError), database.write() as connection:
        connection.exec_driver_sql("ROLLBACK")
    with database.write() as connection:
        assert connection.connection.dbapi_connection is not before
        add(connection, "b")
    assert count(database) == 1


def test_a_read_is_of_one_moment(database):
    """What is committed while a block reads is not seen by it, and is seen by the next."""
    with database.read() as reader:
        before = fetch(reader, COUNT)
        with database.write() as connection:
            add(connection, "a")
        assert fetch(reader, COUNT) == before
    assert count(database) == 1


def test_writers_of_one_process_queue(database):
    """Many threads that write at once all get their turn, and none is refused."""

    def write(number):
        with database.write() as connection:
            add(connection, number)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(80)))
    assert count(database) == 80


def test_a_reader_does_not_write(database):
    """Neither read-only mode takes a change."""
    database.checkpoint()
    for mode in ("ro", "immutable"):
        reader = Database(database.path, mode=mode)
        with pytest.raises(ReadOnlyStoreError) as caught, reader.write() as connection:
            add(connection, "a")
        assert caught.value.evidence == {"sqlite": 8}
        reader.close()


# --- The write-ahead log, copies, the end ---


def log_of(database):
    return Path(f"{database.path}-wal").stat().st_size


def test_a_checkpoint_empties_the_log(database):
    """Afterwards the write-ahead log is empty."""
    with database.write() as connection:
        add(connection, "a", CANARY)
    assert log_of(database) > 0
    assert database.checkpoint() is True
    assert log_of(database) == 0


def test_a_reader_in_the_middle_prevents_a_checkpoint(database):
    """While somebody reads an older moment the log cannot be emptied: the answer is no, and soon."""
    with another(database, "BEGIN"):
        with database.write() as connection:
            add(connection, "a")
        began = time.monotonic()
        assert database.checkpoint(patience=0.05) is False
        assert time.monotonic() - began < module.BUSY_TIMEOUT_SECONDS / 2
        assert log_of(database) > 0
    assert database.checkpoint(patience=0.05) is True


def test_a_writer_in_the_middle_prevents_a_checkpoint(database):
    """A busy writer is an answer, no error; and the patience was for that call only."""
    with another(database, "BEGIN IMMEDIATE") as connection:
        connection.execute("INSERT INTO things VALUES ('b', x'')")
        assert database.checkpoint(patience=0.05) is False
    assert not hasattr(module._waiting, "seconds")


def test_a_database_that_another_holds_alone_prevents_a_checkpoint(database):
    """Where not even a connection can be had within the patience, the answer is no as well."""
    database.close()
    with another(database, "PRAGMA locking_mode = EXCLUSIVE") as connection:
        connection.execute("BEGIN IMMEDIATE")
        waiting = Database(database.path)
        assert waiting.checkpoint(patience=0.05) is False
    assert waiting.checkpoint() is True
    waiting.close()


def test_a_copy_is_whole_and_has_no_free_page(database, tmp_path):
    """A copy holds what was committed, nothing that was deleted, and is made while the store is in use."""
    with database.write() as connection:
        add(connection, "kept", b"kept")
        for number in range(50):
            add(connection, number, CANARY * 100)
    with database.write() as connection:
        change(connection, sa.text("DELETE FROM things WHERE name <> 'kept'"))
    with database.read():
        database.vacuum_into(tmp_path / "copy.db")
    assert CANARY not in (tmp_path / "copy.db").read_bytes()
    copy = Database(tmp_path / "copy.db")
    assert count(copy) == 1
    assert copy.pragma("PRAGMA freelist_count") == [(0,)]
    copy.close()


def test_a_pragma_without_rows_answers_nothing(database):
    """A statement that returns no rows gives an empty list."""
    assert database.pragma("VACUUM") == []
    assert database.pragma("PRAGMA user_version") == [(0,)]


def test_a_closed_database_says_so(database):
    """Everything but a second close raises; the log was moved into the file."""
    with database.write() as connection:
        add(connection, "a")
    database.close()
    database.close()
    assert [file.name for file in database.path.parent.iterdir()] == ["store.db"]
    with pytest.raises(StoreClosedError), database.read():
        pass
    with pytest.raises(StoreClosedError), database.write():
        pass
    with pytest.raises(StoreClosedError):
        database.checkpoint()
    with pytest.raises(StoreClosedError):
        database.vacuum_into(database.path.with_name("copy.db"))
    database.before_fork()
    database.after_fork(in_child=True)


def test_a_fork_finds_no_connection_open(database):
    """Before a fork the idle connections are closed, calls of other threads wait for its end, and then go on."""
    with database.write() as connection:
        add(connection, "a")
    database.before_fork()
    assert [file.name for file in database.path.parent.iterdir()] == ["store.db"]  # the log went with the last one
    waiting = threading.Thread(target=lambda: count(database))
    waiting.start()
    assert waiting.is_alive()
    database.after_fork(in_child=False)
    waiting.join()
    assert count(database) == 1


def test_a_child_has_locks_of_its_own(database):
    """A child goes on although a thread that it does not have was queueing to write."""
    database._writing.acquire()
    database.before_fork()
    database.after_fork(in_child=True)
    with database.write() as connection:
        add(connection, "a")
    assert count(database) == 1


def test_a_fork_in_the_middle_of_a_call_leaves_the_child_without_the_store(database):
    """Who forks inside of a transaction goes on with it in the parent; the child is told to open the store itself."""
    with database.read() as connection:
        fetch(connection, COUNT)
        database.before_fork()
        database.after_fork(in_child=False)
        assert fetch(connection, COUNT) == fetch(connection, COUNT)
        database.before_fork()
        database.after_fork(in_child=True)
    with pytest.raises(StoreClosedError), database.read():
        pass


FORKING = """
import os, sys
from pathlib import Path
from typing import Any
import sqlalchemy as sa
from memlayer.database import Database, change, fetch
database = Database(Path(sys.argv[1]))
def add(name):
    with database.write() as connection:
        change(connection, sa.text(f"INSERT INTO things VALUES ('{name}', x'')"))
add("before")
database.before_fork()
child = os.fork()
database.after_fork(in_child=not child)
if not child:
    for number in range(20):
        add(f"child {number}")
    database.close()
    os._exit(0)
for number in range(20):
    add(f"parent {number}")
assert os.waitpid(child, 0)[1] == 0
add("after")
database.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_and_its_parent_both_write(database):
    """In a real fork both sides go on writing, and no acknowledged write is lost."""
    database.close()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, database.path], cwd=ROOT, check=False, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = Database(database.path)
    assert count(again) == 42
    assert again.pragma("PRAGMA integrity_check") == [("ok",)]
    again.close()
