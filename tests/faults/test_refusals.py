"""What is refused when a store is opened: wrong keys, files that are no store, and stores that were added to."""

from __future__ import annotations

import base64
import os
import socket
from hashlib import sha256
from pathlib import Path

import pytest
from sqlcipher3 import dbapi2

from memlayer import (
    FormatTooNewError,
    KeyFile,
    KeyUnavailableError,
    MemoryStore,
    NotAStoreError,
    Passphrase,
    RawKey,
    RecoveryKey,
    StoreDamagedError,
    StoreMissingError,
    WrongKeyError,
)
from memlayer.sources import FAST_FOR_TESTS
from memlayer.testing import HashingEmbedder
from tests.faults import refusing
from tests.faults.children import Child

EMBEDDER = HashingEmbedder(64)


def _digests(folder: Path) -> dict[str, str]:
    """Of every file, but for the index of the log, which holds nothing and is made anew by whoever reads."""
    return {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.is_file() and not path.name.endswith("-shm")
    }


def _altered(path: Path, *statements: str) -> None:
    connection = dbapi2.connect(str(path), isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


# --- Keys ---


@pytest.fixture(params=["closed", "killed"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A store in a folder of its own, with a slot of every kind; closed, or with the log of a process that died."""
    path = tmp_path / "folder" / "store.db"
    path.parent.mkdir()
    refusing.make_store(path)
    if request.param == "killed":
        with Child(refusing.crash, path=str(path)) as child:
            assert child.receive() == "written"
            assert child.kill() == -9
        assert path.with_name("store.db-wal").stat().st_size > 0
    return path


def _wrong(kind: str, folder: Path) -> RawKey | Passphrase | RecoveryKey | KeyFile:
    if kind == "raw key":
        return RawKey(bytes(32))
    if kind == "passphrase":
        return Passphrase(f"{refusing.PASSPHRASE} ", cost=FAST_FOR_TESTS)
    if kind == "recovery key":
        return RecoveryKey(RecoveryKey.generate())
    (folder / "a.key").write_bytes(base64.b64encode(os.urandom(32)))
    (folder / "a.key").chmod(0o600)
    return KeyFile(folder / "a.key")


@pytest.mark.parametrize("kind", ["raw key", "passphrase", "recovery key", "key file"])
def test_a_wrong_key_changes_nothing(store: Path, kind: str, tmp_path: Path) -> None:
    """A wrong key of any kind is a `WrongKeyError`, and main file and log keep their digests."""
    before = _digests(store.parent)
    with pytest.raises(WrongKeyError):
        MemoryStore.open(store, keys=_wrong(kind, tmp_path), embedder=EMBEDDER)
    after = _digests(store.parent)
    # An empty log may have come: it is what an open store has beside it.
    assert {name: digest for name, digest in after.items() if digest != sha256().hexdigest()} == before
    with refusing.open_store(store) as opened:
        assert opened.user("alice").count() == len(before)  # The log, where there is one, holds one more.


def test_a_right_key_changes_them(store: Path) -> None:
    """The digests that a wrong key leaves as they are do change where a turn is written."""
    before = _digests(store.parent)
    with refusing.open_store(store) as opened:
        opened.user("alice").remember("more")
    assert _digests(store.parent) != before


def test_every_slot_opens_the_store(tmp_path: Path) -> None:
    """The right passphrase and the right recovery key open what a wrong one does not."""
    recovery = refusing.make_store(tmp_path / "store.db")
    for key in (Passphrase(refusing.PASSPHRASE), RecoveryKey(recovery.lower())):
        with MemoryStore.open(tmp_path / "store.db", keys=key, embedder=EMBEDDER) as opened:
            assert opened.user("alice").history()[0].text == refusing.TEXT


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """A key file with a permission for anybody else is not used, neither for a new store nor for an old one."""
    key, path = tmp_path / "a.key", tmp_path / "store.db"
    MemoryStore.open(path, keys=KeyFile(key), embedder=EMBEDDER).close()
    for mode in (0o640, 0o604, 0o620, 0o601):
        key.chmod(mode)
        for place in (path, tmp_path / "new.db"):
            with pytest.raises(KeyUnavailableError, match="chmod 600"):
                MemoryStore.open(place, keys=KeyFile(key), embedder=EMBEDDER)
    assert not (tmp_path / "new.db").exists()
    key.chmod(0o600)
    MemoryStore.open(path, keys=KeyFile(key), embedder=EMBEDDER).close()


def test_two_keys_in_the_environment_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With both variables set no store is made or opened, and the message names both."""
    refusing.make_store(tmp_path / "store.db")
    monkeypatch.setenv("MEMLAYER_KEY", base64.b64encode(refusing.KEY).decode())
    MemoryStore.open(tmp_path / "store.db", embedder=EMBEDDER).close()
    monkeypatch.setenv("MEMLAYER_PASSPHRASE", refusing.PASSPHRASE)
    for name in ("store.db", "new.db"):
        with pytest.raises(KeyUnavailableError, match="MEMLAYER_KEY and MEMLAYER_PASSPHRASE"):
            MemoryStore.open(tmp_path / name, embedder=EMBEDDER)
    assert not (tmp_path / "new.db").exists()


# --- Files that are no store ---


def _sqlite(path: Path, *statements: str) -> None:
    _altered(path, *statements, "CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('mine')")


def _make(kind: str, path: Path) -> None:
    if kind == "an empty file":
        path.touch()
    elif kind == "one byte":
        path.write_bytes(b"S")
    elif kind == "random bytes":
        path.write_bytes(os.urandom(20_000))
    elif kind == "a text":
        path.write_text("Dear diary,\n" * 1_000)
    elif kind == "a database":
        _sqlite(path)
    elif kind == "a database with a log":
        _sqlite(path, "PRAGMA journal_mode=WAL")
    elif kind == "a database of our application id":
        _sqlite(path, f"PRAGMA application_id={0x4D4C5931}", "PRAGMA user_version=1")
    elif kind == "an SQLite header and nothing else":
        path.write_bytes(b"SQLite format 3\0" + bytes(84))
    else:
        refusing.make_store(path.with_name("other.db"))
        with refusing.open_store(path.with_name("other.db")) as store:
            store.user("alice").export(path, passphrase=refusing.PASSPHRASE)


@pytest.mark.parametrize(
    "kind",
    [
        "an empty file",
        "one byte",
        "random bytes",
        "a text",
        "a database",
        "a database with a log",
        "a database of our application id",
        "an SQLite header and nothing else",
        "an export",
    ],
)
@pytest.mark.parametrize("accept_rollback", [False, True])
def test_a_file_that_is_no_store(tmp_path: Path, kind: str, accept_rollback: bool) -> None:
    """A file of anything else is refused and kept byte for byte, and nothing is made beside it."""
    path = tmp_path / "file"
    _make(kind, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    expected = StoreDamagedError if kind == "a database of our application id" else NotAStoreError
    with pytest.raises(expected):
        MemoryStore.open(path, keys=RawKey(refusing.KEY), embedder=EMBEDDER, accept_rollback=accept_rollback)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "kind",
    [
        "a folder",
        "a pipe",
        "a device",
        "a socket",
        "a link to itself",
    ],
)
def test_what_is_no_plain_file(tmp_path: Path, kind: str) -> None:
    """A folder, a pipe, a device or a socket is refused at once, without waiting for somebody to write to it."""
    path = tmp_path / "thing"
    expected = "NotAStoreError"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path = Path("/dev/zero")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    else:
        path.symlink_to(path)
        expected = "InvalidInputError"
    before = sorted(tmp_path.iterdir())
    with Child(refusing.open_it, path=str(path)) as child:
        assert child.receive(patience=20.0) == expected
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "folder",
    [
        "nowhere",
        "file",
    ],
)
def test_a_folder_that_is_not_there(tmp_path: Path, folder: str) -> None:
    """No folder is made for a store, and a file is not taken for one."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreMissingError):
        refusing.open_store(tmp_path / folder / "store.db")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_log_without_its_store(tmp_path: Path) -> None:
    """Where only the log of a store is left no new store is made, which would take the log for its own."""
    log = tmp_path / "store.db-wal"
    log.write_bytes(b"what a crash left behind")
    with pytest.raises(StoreMissingError):
        refusing.open_store(tmp_path / "store.db")
    assert log.read_bytes() == b"what a crash left behind"
    assert list(tmp_path.iterdir()) == [log]


# --- Stores that are not as memlayer makes them ---


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (text)",
        "CREATE VIEW more AS SELECT * FROM records",
        "CREATE TRIGGER more AFTER INSERT ON records BEGIN DELETE FROM records; END",
        "CREATE INDEX more ON records (seq)",
        "CREATE VIRTUAL TABLE more USING fts5(text)",
        "CREATE TEMP TABLE more (text)",
        "ALTER TABLE records ADD COLUMN more BLOB",
        "ALTER TABLE records RENAME TO more",
        "ALTER TABLE items DROP COLUMN version",
        "DROP INDEX records_changed",
        "DROP TABLE items",
        "ANALYZE",
    ],
)
def test_a_schema_that_is_not_ours(tmp_path: Path, statement: str) -> None:
    """A store with anything in its schema that memlayer did not make, or without something that it made, is refused."""
    refusing.make_store(tmp_path / "store.db")
    if statement.startswith("CREATE TEMP"):
        # The control: nothing of it is in the file, so the store opens.
        _altered(tmp_path / "store.db", statement)
        refusing.open_store(tmp_path / "store.db").close()
        return
    _altered(tmp_path / "store.db", statement)
    before = _digests(tmp_path)
    with pytest.raises(StoreDamagedError):
        refusing.open_store(tmp_path / "store.db")
    assert {name: digest for name, digest in _digests(tmp_path).items() if digest != sha256().hexdigest()} == before


@pytest.mark.parametrize("statement", ["PRAGMA user_version=2", "UPDATE meta SET format=2"])
def test_a_later_format(tmp_path: Path, statement: str) -> None:
    """A store of a later format is refused by its name and left as it is."""
    refusing.make_store(tmp_path / "store.db")
    _altered(tmp_path / "store.db", statement)
    before = _digests(tmp_path)
    with pytest.raises(FormatTooNewError):
        refusing.open_store(tmp_path / "store.db")
    assert {name: digest for name, digest in _digests(tmp_path).items() if digest != sha256().hexdigest()} == before
