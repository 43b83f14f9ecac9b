"""One database: connections, transactions, and what its failures are called.

SQLite through `sqlcipher3`, which brings its own library (the one that Python was built with is often old, and SQLite
before 3.51.3 can corrupt a WAL), without its encryption: what memlayer stores is sealed before it gets here.

Write-ahead log, `synchronous=FULL`: a commit that returned survives a power cut. `BEGIN IMMEDIATE` for every write: a
deferred transaction that turns into a write fails at once with "database is locked", whatever the timeout.

The process never opens the files by itself while a connection is open: closing such a handle would drop SQLite's POSIX
locks (see "How To Corrupt An SQLite Database File", section 2.2), and another process's acknowledged write with them.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlcipher3 import dbapi2 as driver

from memlayer.errors import (
    NotAStoreError,
    ReadOnlyStoreError,
    StorageError,
    StorageFullError,
    StoreBusyError,
    StoreClosedError,
    StoreDamagedError,
    StoreMissingError,
)
from memlayer.gate import ForkGate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy.engine import Connection, Engine

__all__ = ["Database", "change", "fetch"]

BUSY_TIMEOUT_SECONDS = 60
"""How long a writer waits for the others. A commit is one fsync, 1 to 10 ms, so hundreds of writers fit."""

PAGE_SIZE = 8192

# What every connection must answer, whatever the driver was compiled with.
_SETTINGS: Mapping[str, int | str] = {
    "secure_delete": 1,  # deleted content is overwritten, not only unlinked
    "temp_store": 2,  # sorts and temporary tables in memory, never in a file in clear
    "synchronous": 2,  # FULL
    "foreign_keys": 1,
    "trusted_schema": 0,  # no function with side effects out of a schema
    "cell_size_check": 1,
    "fullfsync": 1,  # macOS: a plain fsync does not reach the disk there; nothing elsewhere
    "checkpoint_fullfsync": 1,
    "journal_size_limit": 64 * 1024 * 1024,  # a bulk load leaves no huge log behind
    "mmap_size": 0,  # an I/O error is an error, not a signal; and no page is read behind the checks
}

_FAILURES: Mapping[int, tuple[type[StorageError], str]] = {
    1: (StoreDamagedError, "the database is not built as it must be; restore a backup"),
    5: (StoreBusyError, "another process held the store for too long; try again"),
    7: (StorageError, "there is not enough memory for this"),
    6: (StoreBusyError, "another connection held the store for too long; try again"),
    8: (ReadOnlyStoreError, "the store cannot be written: the file, its folder or the file system is read-only"),
    11: (StoreDamagedError, "the database file is damaged; restore a backup"),
    13: (StorageFullError, "no room on the disk; the write was undone, free some and try again"),
    14: (StorageError, "the database file cannot be opened; check the path and its permissions"),
    19: (StoreDamagedError, "a row that must not be there stands in the way"),
    26: (NotAStoreError, "the file is no memlayer store; it was left as it is"),
}


def fetch(connection: Connection, query: sa.Executable, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
    """All rows of a query, with these values bound.

    Raises:
        StorageError: every failure of the database is one. A damaged file makes the driver raise anything, from
            UnicodeDecodeError to errors of its own; what they say is not repeated, for it can hold bound values.
    """
    with _failures():
        return connection.execute(query, values).fetchall()


def change(
    connection: Connection,
    statement: sa.Executable,
    rows: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
) -> int:
    """Runs an INSERT, UPDATE or DELETE; how many rows it touched. Raises as `fetch` does."""
    with _failures():
        return connection.execute(statement, rows).rowcount


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except driver.Error as error:
        raise _named(error) from None
    except sa.exc.DBAPIError as error:
        interrupted, _waiting.interrupted = getattr(_waiting, "interrupted", None), None
        raise interrupted or _named(error.orig) from None
    except MemoryError:
        raise StorageError("there is not enough memory for this") from None
    except (sa.exc.SQLAlchemyError, ValueError, TypeError, OverflowError):
        raise StoreDamagedError("a row of the database file cannot be read") from None


def _named(error: BaseException | None) -> StorageError:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # The driver's own, about a value that it cannot make a Python object of.
        return StoreDamagedError("a row of the database file cannot be read")
    kind, message = _FAILURES.get(code & 0xFF, (StorageError, "the database failed"))
    return kind(message, sqlite=code)


class Database:
    """The engine of one store.

    Args:
        path: the file, absolute.
        mode: "rw"; "ro" never changes a byte of it; "immutable" reads it where not even the WAL's index can be made.
    """

    def __init__(self, path: Path, *, mode: str = "rw") -> None:
        self.path = path
        self.mode = mode
        # In one process, writers queue here, first come first served. SQLite's own waiting is a poll with back-off:
        # fair enough between a few processes, and wasteful between threads.
        self._writing = threading.Lock()
        self._writer: int | None = None  # the thread that has it
        self._engine: Engine | None = _engine(path, mode=mode)
        self._gate = ForkGate()
        self._looking = threading.Lock()
        self._looker: sa.PoolProxiedConnection | None = None
        self._looks = 0  # numbers of two connections do not compare
        self._inherited = False
        self._in_child: list[Callable[[], None]] = []
        self._inode = _inode(path)
        with _forking:
            # Before the first connection, and for as long as there can be one, whoever else still knows of it.
            _databases.add(self)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent snapshot: everything read in the block is of one moment."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction, committed at the end of the block and durable then; rolled back when it raises.

        Raises:
            StoreBusyError: this thread is in the middle of another one, and would wait for itself.
        """
        if self._writer == threading.get_ident():
            raise StoreBusyError("a write was begun inside of another write of this thread; end that one first")
        with self._writing:
            self._writer = threading.get_ident()
            try:
                with self._transaction("BEGIN IMMEDIATE") as connection:
                    self._same_file()
                    yield connection
            finally:
                self._writer = None

    def version(self) -> object:
        """Another value whenever anything was committed since it was last asked, by whatever connection and process:
        `PRAGMA data_version` of a connection that never writes (see SQLite's documentation of it)."""
        with self._gate.passed(), self._looking, _failures():
            connection: Any = self._look(self._opened()).driver_connection
            return self._looks, connection.execute("PRAGMA data_version").fetchone()[0]

    def _look(self, engine: Engine) -> sa.PoolProxiedConnection:
        if self._looker is None:
            self._looker = engine.raw_connection()
            self._looks += 1
        return self._looker

    def _stop_looking(self) -> None:
        looker, self._looker = self._looker, None
        if looker is not None:
            looker.close()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        with self._connection() as connection:
            _begin(connection, begin)
            try:
                yield connection
                with _failures():
                    connection.exec_driver_sql("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    def entered(self) -> AbstractContextManager[None]:
        """A call that a fork waits for, before it takes any lock that a writer may hold while it waits for another."""
        return self._gate.passed()

    def in_child(self, renew: Callable[[], None]) -> None:
        """Has `renew` called in the child of a fork, for what else must not be inherited."""
        self._in_child.append(renew)

    def _same_file(self) -> None:
        """Raises if another file stands at the path than the one that is open: a commit would go to the one that
        nobody can open any more."""
        if _inode(self.path) != self._inode:
            raise StoreMissingError(
                "the store's file was removed or replaced while it was open; nothing was written. Open it again"
            )

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with self._gate.passed():
            engine = self._opened()
            with _failures():
                connection = engine.connect()
                if self._looker is None:
                    # With the first one: later another file may stand at the path, and this one would speak of that.
                    with self._looking:
                        self._look(engine)
            with connection:
                yield connection

    def _opened(self) -> Engine:
        if self._inherited:
            raise StoreClosedError("the process was forked in the middle of a call to the store; open it in the child")
        if self._engine is None:
            raise StoreClosedError("the store is closed; open it again")
        return self._engine

    def pragma(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows that a pragma or a VACUUM answers; outside of a transaction."""
        with self._connection() as connection, _failures():
            result = connection.exec_driver_sql(statement)
            return [tuple(row) for row in result.fetchall()] if result.returns_rows else []

    def checkpoint(self, *, patience: float = 2.0) -> bool:
        """Moves the WAL into the file and empties it, so that what was deleted is in neither.

        Args:
            patience: for how many seconds to try; a reader in the middle of a query prevents it, and SQLite says so in
                a row, not by an error.

        Returns:
            Whether it was done.
        """
        _waiting.seconds = patience
        try:
            return bool(self.pragma("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0)
        except StoreClosedError:
            raise
        except StorageError:
            return False  # Nothing is lost by it: the log is moved another time.
        finally:
            del _waiting.seconds

    def rebuild(self) -> bool:
        """Writes the file anew, without what SQLite leaves behind of rows that it moved between pages: `secure_delete`
        zeroes the row that is deleted, and not the places where it stood before.

        It takes memory of about the file's size, because no temporary file is ever written.

        Returns:
            Whether it was done, and the log emptied; not while another process is in the middle of a query, nor where
            disk or memory are too small.
        """
        with self._writing:
            try:
                self.pragma("VACUUM")
            except StoreClosedError:
                raise
            except StorageError:
                return False
        return self.checkpoint()

    def vacuum_into(self, target: Path) -> None:
        """A consistent copy as a new file; readers and writers go on meanwhile.

        It reads one snapshot and copies no free page, so nothing that was forgotten is in the copy.
        """
        self.pragma("VACUUM INTO '" + str(target).replace("'", "''") + "'")

    def close(self) -> None:
        """Closes every connection; the last one of all processes moves the WAL into the file."""
        engine, self._engine = self._engine, None
        if not self._inherited:  # then it is the parent's, as all of its connections are
            self._stop_looking()
        if engine is not None:
            engine.dispose()

    def before_fork(self) -> None:
        """Waits for the calls that are under way, and closes the connections."""
        self._inherited = not self._gate.close()
        if self._engine is not None and not self._inherited:
            self._stop_looking()
            self._engine.dispose()

    def after_fork(self, *, in_child: bool) -> None:
        """Lets calls in again: in the child with locks of its own, for the parent's may be held by threads that it
        does not have; and not at all where the fork did not wait for a call's end."""
        if in_child:
            self._writing = threading.Lock()
            self._looking = threading.Lock()
            self._writer = None
            self._gate = ForkGate()
            if self._inherited and self._engine is not None:
                self._engine.dispose(close=False)
            for renew in self._in_child:
                renew()
        else:
            self._inherited = False
            self._gate.open()


# Every database whose connections a fork must not leave open. A strong reference elsewhere, such as the handle of one
# user, keeps it here; and while a fork is under way nothing is added and no other fork begins.
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_forking = threading.Lock()


def _before_fork() -> None:
    _forking.acquire()
    for database in list(_databases):
        database.before_fork()


def _after_fork_in_parent() -> None:
    for database in list(_databases):
        database.after_fork(in_child=False)
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking
    _forking = threading.Lock()
    for database in list(_databases):
        database.after_fork(in_child=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _begin(connection: Connection, statement: str) -> None:
    """Begins a transaction, and waits for the writers before it here and not in SQLite's busy handler: what interrupts
    the handler is dropped by the driver, and Ctrl-C would look like a busy store. Not even a handler that gives up at
    once would do, for Python raises what is due when it enters one."""
    until = time.monotonic() + getattr(_waiting, "seconds", BUSY_TIMEOUT_SECONDS)
    raw: Any = connection.connection.driver_connection
    raw.set_busy_handler(None)
    try:
        while True:
            try:
                with _failures():
                    connection.exec_driver_sql(statement)
                return
            except StoreBusyError:
                if time.monotonic() > until:
                    raise
            time.sleep(random.uniform(0.0005, 0.005))  # noqa: S311  no secret depends on it
    finally:
        raw.set_busy_handler(_Patience())


def _roll_back(connection: Connection) -> None:
    try:
        connection.exec_driver_sql("ROLLBACK")
    except sa.exc.SQLAlchemyError:
        # SQLite has rolled back by itself (disk full, I/O error), or the connection is no longer usable (Ctrl-C in the
        # middle of a statement): either way it must not go back to the pool. The first error is the one to tell.
        connection.invalidate()


def _engine(path: Path, *, mode: str) -> Engine:
    options = {"rw": "mode=rw", "ro": "mode=ro", "immutable": "mode=ro&immutable=1"}[mode]
    # An absolute path, quoted: SQLite would read "?" and "%" in a bare one as its own syntax.
    uri = f"file:{quote(os.fsencode(path))}?{options}"

    def connect() -> driver.Connection:
        connection = driver.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        try:
            connection.set_busy_handler(_Patience())
            _configure(connection, writable=mode == "rw")
        except BaseException:
            connection.close()
            raise
        return connection

    return sa.create_engine(
        "sqlite://",
        module=driver,
        creator=connect,
        poolclass=sa.pool.QueuePool,
        pool_size=4,
        max_overflow=-1,  # one a thread that is inside of a call; they are closed when they come back
        pool_reset_on_return=None,  # every block ends its own transaction
        isolation_level="AUTOCOMMIT",  # SQLAlchemy sends no BEGIN or COMMIT of its own: ours are explicit
        hide_parameters=True,
    )


_waiting = threading.local()
"""`seconds`: how long this thread waits for others, if not by default; `interrupted`: what ended its waiting."""


class _Patience:
    """Waits for the writers before: a short sleep of random length each time.

    SQLite's own handler backs off to 100 ms and starves whoever has waited longest: of 8 busy processes one waited
    10.6 s, with this 0.75 s (measured, at an fsync of 4 ms). A class because it remembers when the wait began.
    """

    def __init__(self) -> None:
        self._since = 0.0

    def __call__(self, tries: int) -> int:
        if tries == 0:
            self._since = time.monotonic()
        if time.monotonic() - self._since >= getattr(_waiting, "seconds", BUSY_TIMEOUT_SECONDS):
            return 0
        try:
            time.sleep(random.uniform(0.0005, 0.005))  # noqa: S311  no secret depends on it
        except BaseException as error:  # noqa: BLE001  the driver drops what is raised here: Ctrl-C, above all
            _waiting.interrupted = error
            return 0
        return 1


def _configure(connection: driver.Connection, *, writable: bool) -> None:
    for name, value in _SETTINGS.items():
        connection.execute(f"PRAGMA {name}={value}")
        if (answer := connection.execute(f"PRAGMA {name}").fetchone()) != (value,):
            raise StorageError(f"this SQLite does not take {name}={value}", answer=str(answer))
    if writable:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}")
        if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
            raise ReadOnlyStoreError("the store cannot be written: its write-ahead log cannot be made")
