"""Opening, closing, keys, backup, verify: the store as a whole."""

from __future__ import annotations

import base64
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
from typing import Any

import pytest
from sqlcipher3 import dbapi2

import memlayer
from memlayer import (
    ConflictError,
    EmbedderMismatchError,
    InvalidInputError,
    KeyFile,
    KeyUnavailableError,
    LimitExceededError,
    MemoryStore,
    NotFoundError,
    Passphrase,
    RawKey,
    RecoveryKey,
    RollbackDetectedError,
    StoreClosedError,
    StoreDamagedError,
    StoreMissingError,
    Turn,
    WrongKeyError,
)
from memlayer.sources import FAST_FOR_TESTS
from memlayer.testing import HashingEmbedder

KEY = RawKey(bytes(range(32)))


def _open(path, **options: Any):
    arguments: dict[str, Any] = {"keys": KEY, "embedder": HashingEmbedder()} | options
    return MemoryStore.open(path, **arguments)


def test_the_public_names_are_these():
    """`from memlayer import *` gives the names of the contract, sorted, and nothing else."""
    assert memlayer.__all__ == sorted(memlayer.__all__)
    assert {
        "MemoryStore",
        "Turn",
        "Memory",
        "Hit",
        "Recall",
        "History",
        "Session",
        "Embedder",
        "EmbedderIdentity",
    } <= set(memlayer.__all__)
    assert {"ErasureReceipt", "ImportReport", "KeySlotInfo", "ReembedReport", "VerifyReport"} <= set(memlayer.__all__)
    assert {"Passphrase", "KeyFile", "RawKey", "RecoveryKey", "MemlayerError"} <= set(memlayer.__all__)
    for name in memlayer.__all__:
        assert getattr(memlayer, name).__name__ == name


def test_importing_memlayer_loads_nothing_heavy():
    """`import memlayer` loads no driver, no cryptography, no numpy, no torch and no provider's SDK."""
    heavy = (
        "numpy sqlalchemy apsw sqlcipher3 sqlite_vec cryptography "
        "torch transformers sentence_transformers litellm openai"
    )
    program = f"import sys, memlayer; print([name for name in {heavy.split()!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_opening_and_vector_recall_load_no_model(tmp_path):
    """A store with the default embedder is opened, written with given vectors and asked by vector without torch."""
    program = (
        "import sys, numpy as np\n"
        "from memlayer import MemoryStore, RawKey, Turn\n"
        f"with MemoryStore.open({str(tmp_path / 'm.db')!r}, keys=RawKey(bytes(32))) as store:\n"
        "    alice = store.user('alice')\n"
        "    alice.remember_many([Turn(text='x')], embeddings=np.ones((1, 384), dtype=np.float32))\n"
        "    assert alice.recall(np.ones(384, dtype=np.float32))[0].text == 'x'\n"
        "print([name for name in ('torch', 'sentence_transformers', 'transformers') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_missing_file_is_made_and_an_existing_one_is_opened(tmp_path):
    """open makes a new store where none is, mode 0600, and afterwards opens it with what is in it."""
    path = tmp_path / "memories.db"
    with _open(path) as store:
        store.user("alice").remember("peanuts")
        assert (store.path, store.read_only, store.embedder.model) == (path, False, "memlayer.testing/hashing")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["memories.db"]
    with _open(f"sqlite:///{path}") as store:
        assert [memory.text for memory in store.user("alice").history()] == ["peanuts"]


@pytest.mark.parametrize("path", ["", ":memory:", "postgresql://host/db", "sqlite://", "a\0b"])
def test_what_is_no_file_is_refused(path):
    """A path that names no file is an InvalidInputError with a sentence that says so."""
    with pytest.raises(InvalidInputError):
        _open(path)


@pytest.mark.parametrize("name", ["a?mode=memory", "a#b", "a%20b", "ä ö.db", "semi;colon&amp"])
def test_a_file_name_is_taken_exactly(tmp_path, name):
    """What SQLite would read as its own syntax in a name is a name here."""
    with _open(tmp_path / name) as store:
        store.user("alice").remember("x")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    with _open(tmp_path / name) as store:
        assert len(store.user("alice")) == 1


def test_a_closed_store_says_so(tmp_path):
    """Every call after close raises StoreClosedError, through handles too, and close may be called twice."""
    store = _open(tmp_path / "m.db")
    alice = store.user("alice")
    store.close()
    store.close()
    for call in (
        store.verify, store.count_users, store.key_slots, lambda: store.user("bob"), lambda: store.path,
        lambda: alice.remember("x"), lambda: alice.recall("x"), lambda: len(alice), alice.erase, alice.sessions,
    ):  # fmt: skip
        with pytest.raises(StoreClosedError):
            call()
    assert repr(store) == "MemoryStore(closed)"


def test_a_user_is_named_exactly_and_asking_writes_nothing(tmp_path):
    """user() checks the id, keeps it exactly, and writes nothing before the first memory."""
    with _open(tmp_path / "m.db") as store:
        before = (tmp_path / "m.db").stat().st_mtime_ns
        for user_id in ("", "\ud800", "x" * 513, None, 5, b"alice", ["alice"]):
            with pytest.raises(InvalidInputError):
                store.user(user_id)
        for user_id in ("alice", "Alice", "alice ", "al%", "é", "e\u0301", "a\0b", "'; DROP TABLE users"):
            assert len(store.user(user_id)) == 0
        assert store.count_users() == 0
        assert (tmp_path / "m.db").stat().st_mtime_ns == before


def test_another_embedder_is_refused_with_what_to_do(tmp_path):
    """A store that was written with one embedder is not opened with another; the error names both."""
    path = tmp_path / "m.db"
    with _open(path) as store:
        store.user("alice").remember("x")
    before = path.read_bytes()
    with pytest.raises(EmbedderMismatchError, match="dimensions") as caught:
        _open(path, embedder=HashingEmbedder(32))
    assert "memlayer.testing/hashing" in str(caught.value)
    with pytest.raises(EmbedderMismatchError, match="all-MiniLM-L6-v2"):
        _open(path, embedder=None)
    assert path.read_bytes() == before


def test_verify_counts_what_is_there(store):
    """verify opens every memory of every user and says how many there are."""
    assert store.verify().memories == 0
    store.user("alice").remember_many([Turn(text=f"fact {number}") for number in range(7)])
    store.user("bob").remember("one")
    report = store.verify()
    assert (report.users, report.memories, report.buckets) == (2, 8, 2)
    assert store.count_users() == 2


# --- keys ---


def test_without_keys_a_key_file_is_made_away_from_the_store(tmp_path, home, caplog):
    """keys=None makes a key file of mode 0600 in the config folder, says so in one log line, and uses it again."""
    with caplog.at_level(logging.INFO, logger="memlayer"), _open(tmp_path / "m.db", keys=None) as store:
        store.user("alice").remember("x")
    (key_file,) = home.rglob("*.key")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert not key_file.is_relative_to(tmp_path)
    assert (
        sum(str(key_file) in record.getMessage() and record.levelno == logging.INFO for record in caplog.records) == 1
    )
    with _open(tmp_path / "m.db", keys=None) as store:
        assert len(store.user("alice")) == 1
    key_file.unlink()
    with pytest.raises(KeyUnavailableError):
        _open(tmp_path / "m.db", keys=None)
    assert not key_file.exists()


def test_a_key_in_the_environment_is_the_only_one_tried(tmp_path, monkeypatch):
    """MEMLAYER_KEY or MEMLAYER_PASSPHRASE opens the store; a wrong one is an error although a key file would do."""
    monkeypatch.setenv("MEMLAYER_KEY", base64.b64encode(bytes(range(32))).decode())
    with _open(tmp_path / "m.db", keys=None) as store:
        store.user("alice").remember("x")
    with _open(tmp_path / "m.db") as store:
        assert len(store.user("alice")) == 1
    monkeypatch.setenv("MEMLAYER_KEY", base64.b64encode(bytes(32)).decode())
    with pytest.raises(WrongKeyError):
        _open(tmp_path / "m.db", keys=None)
    monkeypatch.setenv("MEMLAYER_PASSPHRASE", "also")
    with pytest.raises(KeyUnavailableError, match="both"):
        _open(tmp_path / "m.db", keys=None)


def test_a_second_slot_opens_the_same_store(tmp_path):
    """A store made with a passphrase is opened by its recovery key, and by nothing else."""
    path = tmp_path / "m.db"
    with _open(path, keys=Passphrase("correct horse", cost=FAST_FOR_TESTS)) as store:
        store.user("alice").remember("x")
        text = store.new_recovery_key()
    for source in (Passphrase("correct horse"), RecoveryKey(text), RecoveryKey(text.lower().replace("-", " "))):
        with _open(path, keys=source) as store:
            assert len(store.user("alice")) == 1
    for wrong in (Passphrase("wrong horse"), RecoveryKey(RecoveryKey.generate()), KEY):
        with pytest.raises(WrongKeyError):
            _open(path, keys=wrong)


def test_keys_come_and_go(tmp_path):
    """A key that was added opens the store until it is removed; the last one cannot be removed."""
    path = tmp_path / "m.db"
    with _open(path) as store:
        store.user("alice").remember("x")
        slot = store.add_key(KeyFile(tmp_path / "extra.key"))
        assert [(info.slot, info.kind, info.used) for info in store.key_slots()] == [
            (1, "key", True),
            (2, "key", False),
        ]
    with _open(path, keys=KeyFile(tmp_path / "extra.key")) as store:
        assert [info.used for info in store.key_slots()] == [False, True]
        store.remove_key(1)
        with pytest.raises(ConflictError):
            store.remove_key(slot)
        with pytest.raises(NotFoundError):
            store.remove_key(99)
        store.verify()
    with pytest.raises(WrongKeyError):
        _open(path)


def test_a_store_has_at_most_sixteen_ways_in(store):
    """The seventeenth key is refused, and the store opens as before."""
    for _ in range(15):
        store.add_key(RawKey.generate())
    with pytest.raises(LimitExceededError):
        store.add_key(RawKey.generate())
    path = store.path
    store.close()
    with _open(path) as again:
        assert len(again.key_slots()) == 16


# --- backup, and the rollback guard ---


def test_a_backup_is_a_whole_store_of_that_moment(tmp_path, store, alice):
    """A backup made while the store is open holds what was committed, opens with the same key, and verifies."""
    alice.remember_many([Turn(text=f"fact {number}") for number in range(20)])
    alice.forget(alice.history()[0].id)
    store.backup(tmp_path / "copy.db")
    alice.remember("after the backup")
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    with _open(tmp_path / "copy.db") as copy:
        assert (len(copy.user("alice")), copy.verify().memories) == (19, 19)
        copy.user("alice").remember("the copy goes its own way")
    assert len(alice) == 20
    with pytest.raises(InvalidInputError):
        store.backup(tmp_path / "copy.db")
    with pytest.raises(StoreMissingError):
        store.backup(tmp_path / "no such folder" / "copy.db")


def test_a_restored_backup_is_opened_only_when_that_is_said(tmp_path):
    """An older copy put in the store's place is a RollbackDetectedError, and with accept_rollback=True is the store."""
    path = tmp_path / "m.db"
    with _open(path) as store:
        store.user("alice").remember("one")
        store.backup(tmp_path / "backup.db")
        store.user("alice").remember("two")
    os.replace(tmp_path / "backup.db", path)
    with pytest.raises(RollbackDetectedError, match="accept_rollback=True"):
        _open(path)
    with _open(path, accept_rollback=True) as store:
        assert [memory.text for memory in store.user("alice").history()] == ["one"]
        store.user("alice").remember("another two")
    with _open(path) as store:
        assert len(store.user("alice")) == 2


def test_a_store_that_is_gone_is_not_silently_begun_anew(tmp_path):
    """Where a store was and its file is missing, open raises; accept_rollback=True begins a new one."""
    path = tmp_path / "m.db"
    with _open(path) as store:
        store.user("alice").remember("x")
    path.unlink()
    with pytest.raises(StoreMissingError, match="accept_rollback=True"):
        _open(path)
    assert not path.exists()
    with _open(path, accept_rollback=True) as store:
        assert store.count_users() == 0
    with _open(path) as store:
        assert store.count_users() == 0


def test_a_moved_store_takes_its_guard_along_and_a_copy_does_not(tmp_path):
    """After a move the old state is still refused; a copy beside the original opens whatever its age."""
    path, moved = tmp_path / "m.db", tmp_path / "moved.db"
    with _open(path) as store:
        store.user("alice").remember("one")
        store.backup(tmp_path / "old.db")
        store.user("alice").remember("two")
    with _open(tmp_path / "old.db") as copy:
        assert len(copy.user("alice")) == 1
    (tmp_path / "old.db").rename(tmp_path / "kept.db")
    os.replace(path, moved)
    with _open(moved) as store:
        assert len(store.user("alice")) == 2
    os.replace(tmp_path / "kept.db", moved)
    with pytest.raises(RollbackDetectedError):
        _open(moved)


def test_a_refused_key_does_not_stand_in_the_way_of_a_new_store(tmp_path):
    """What a refused open leaves beside the file is no obstacle to a new store, once the loss is accepted."""
    path = tmp_path / "m.db"
    with _open(path) as store:
        store.user("alice").remember("x")
    with pytest.raises(WrongKeyError):
        _open(path, keys=RawKey(bytes(32)))
    path.unlink()
    for _ in range(2):
        with pytest.raises(StoreMissingError, match="accept_rollback"):
            _open(path)
    with _open(path, accept_rollback=True) as store:
        assert store.count_users() == 0


def test_a_log_without_its_store_is_not_taken_into_a_new_one(tmp_path):
    """Where a write-ahead log lies without its file, no store is made, for SQLite would replay it; the note stays."""
    path = tmp_path / "m.db"
    with _open(path) as store:
        store.user("alice").remember("x")
    path.unlink()
    (tmp_path / "m.db-wal").write_bytes(b"the log of another store")
    for accept in (True, False):
        with pytest.raises(StoreMissingError):
            _open(path, accept_rollback=accept)
    (tmp_path / "m.db-wal").unlink()
    with pytest.raises(StoreMissingError, match="accept_rollback"):
        _open(path)


def test_copies_of_an_older_state_open_wherever_the_newer_one_went(tmp_path):
    """A template that is copied, used, deleted and copied again opens each time; no copy is taken for a rollback."""
    with _open(tmp_path / "template.db") as store:
        store.user("alice").remember("one")
    for _ in range(4):
        for name in ("copy1.db", "copy2.db"):
            shutil.copyfile(tmp_path / "template.db", tmp_path / name)
            with _open(tmp_path / name, accept_rollback=(tmp_path / f"{name}.seen").exists()) as store:
                store.user("alice").remember("two")
            (tmp_path / f"{name}.seen").touch()
            (tmp_path / name).unlink()
    (tmp_path / "template.db").rename(tmp_path / "moved.db")
    with _open(tmp_path / "moved.db") as store:
        assert len(store.user("alice")) == 1


def test_a_damaged_store_is_not_forgotten_by_accepting_a_rollback(tmp_path):
    """accept_rollback=True on a store that is refused for another reason leaves the guard as it was."""
    path = tmp_path / "m.db"
    with _open(path) as store:
        store.user("alice").remember("one")
        store.backup(tmp_path / "old.db")
        store.user("alice").remember("two")
    connection = dbapi2.connect(str(path))
    connection.execute("DELETE FROM directory")
    connection.commit()
    connection.close()
    with pytest.raises(StoreDamagedError):
        _open(path, accept_rollback=True)
    os.replace(tmp_path / "old.db", path)
    with pytest.raises(RollbackDetectedError):
        _open(path)


def test_a_user_whose_bucket_was_removed_is_not_an_empty_one(tmp_path):
    """A bucket that another process wrote, removed with its users, is damage to a running store too, not silence."""
    path = tmp_path / "m.db"
    with _open(path) as running:
        assert len(running.user("victim")) == 0
        with _open(path) as other:
            other.user("victim").remember("x")
        connection = dbapi2.connect(str(path))
        for table in ("records", "users", "directory"):
            connection.execute(f"DELETE FROM {table}")
        connection.commit()
        connection.close()
        with pytest.raises(StoreDamagedError):
            len(running.user("victim"))


def test_a_handle_keeps_its_store_safe_across_a_fork(tmp_path):
    """The common one-liner, whose store object is gone, loses nothing when the process forks."""
    program = (
        "import gc, os\n"
        "from memlayer import MemoryStore, RawKey\n"
        "from memlayer.testing import HashingEmbedder\n"
        f"user = MemoryStore.open({str(tmp_path / 'm.db')!r}, keys=RawKey(bytes(32)), embedder=HashingEmbedder())"
        ".user('u')\n"
        "gc.collect()\n"
        "user.remember('one')\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    for number in range(5):\n"
        "        user.remember(f'child {number}')\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert user.count() == 6, user.count()\n"
        "user.remember('two')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
    with _open(tmp_path / "m.db", keys=RawKey(bytes(32))) as store:
        assert len(store.user("u")) == 7
        store.verify()


@pytest.mark.parametrize("arguments", [{"path": None}, {"path": 5}, {"path": "m.db", "keys": "secret"}])
def test_arguments_of_another_type_are_typed_errors(arguments, tmp_path, monkeypatch):
    """A key or path of another type is an InvalidInputError that says what it must be, and makes no file."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError):
        _open(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_interrupting_a_wait_for_another_writer_is_an_interruption(store, alice):
    """Ctrl-C while another process writes is a KeyboardInterrupt, not a busy store; and the store goes on after it."""
    other = dbapi2.connect(str(store.path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            alice.remember("never written")
    finally:
        signal.signal(signal.SIGALRM, previous)
        other.execute("ROLLBACK")
        other.close()
    alice.remember("written")
    assert [memory.text for memory in alice.history()] == ["written"]
