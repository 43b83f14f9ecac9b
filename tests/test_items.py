"""`memlayer.items`: named things of a user's that are no memories, by `UserMemory.items`."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memlayer import (
    InvalidInputError,
    LimitExceededError,
    MemoryStore,
    ReadOnlyStoreError,
    RollbackDetectedError,
    StoreBusyError,
    StoreDamagedError,
)
from memlayer import export as exporting
from memlayer.items import MAX_ITEM_BYTES, ItemKind, named
from memlayer.sources import FAST_FOR_TESTS
from memlayer.testing import HashingEmbedder
from tests.conftest import KEY

FILES = {"a.md": b"what is in it", "": b"without a name", "empty": b"", "zeros": bytes(300)}


@pytest.fixture
def files(alice):
    """Alice's files, none at first."""
    return alice.items(ItemKind.TOOL_FILE)


@pytest.fixture
def opened(tmp_path):
    """Opens the file of `store` once more, as another process would."""
    stores = []

    def opened(**options: Any) -> MemoryStore:
        stores.append(MemoryStore.open(tmp_path / "memories.db", keys=KEY, embedder=HashingEmbedder(), **options))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


def fill(items, content=FILES):
    with items.change() as there:
        there |= content


def files_of(store, name="alice"):
    return store.user(name).items(ItemKind.TOOL_FILE)


class Undo(Exception):
    """Ends a change that is not to be made."""


# --- What goes in comes out ---


def test_items_come_back_as_they_were_put(files, opened):
    """By name, byte for byte, at once and after the store was opened again."""
    assert files.read() == {}
    fill(files)
    assert files.read() == FILES
    assert files_of(opened()).read() == FILES


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.binary(max_size=600)))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_names_and_contents(files, opened, content):
    """Names of any Unicode are taken exactly, none is another one's; contents are any bytes."""
    with files.change() as there:
        there.clear()
        there |= content
    assert files.read() == content
    assert files_of(opened()).read() == content


def test_names_that_look_alike_are_several(files):
    """Nothing is folded, normalised, cut at a NUL or taken for a pattern."""
    names = ["caf\u00e9", "cafe\u0301", "Caf\u00e9", "a", "a\0", "a ", "%", "_", "a/../b", "\U0010ffff", "n" * 5_000]
    fill(files, {name: str(number).encode() for number, name in enumerate(names)})
    assert files.read() == {name: str(number).encode() for number, name in enumerate(names)}


def test_the_names_of_two_kinds_have_nothing_to_do_with_each_other(alice, files):
    """A name may be in use in each kind; a change of one kind leaves the other as it is."""
    entries = alice.items(ItemKind.FRAMEWORK)
    fill(files, {"same": b"file", "file": b"1"})
    fill(entries, {"same": b"entry"})
    with files.change() as there:
        del there["same"]
    assert (files.read(), entries.read()) == ({"file": b"1"}, {"same": b"entry"})


def test_items_are_no_memories(alice, files, store):
    """They are not counted, listed, recalled, nor in a conversation; a user who has only items is there."""
    fill(files, {"a": b"peanuts"})
    assert [alice.count(), *alice.history(), *alice.sessions(), *alice.recall("peanuts")] == [0]
    assert store.count_users() == 1
    alice.remember("peanuts are bad for me")
    assert alice.count() == 1
    assert files.read() == {"a": b"peanuts"}


# --- A change is one transaction ---


def test_what_the_block_leaves_is_written(files, opened):
    """New, replaced and dropped at once; a copy that somebody kept of it is theirs."""
    fill(files, {"kept": b"1", "replaced": b"1", "dropped": b"1"})
    with files.change() as there:
        assert there == {"kept": b"1", "replaced": b"1", "dropped": b"1"}
        there["replaced"] = b"2"
        there["new"] = b"2"
        del there["dropped"]
    there["later"] = b"nobody sees it"
    expected = {"kept": b"1", "replaced": b"2", "new": b"2"}
    assert files.read() == files_of(opened()).read() == expected
    files.read()["later"] = b"nobody sees it"
    assert files.read() == expected


@pytest.mark.parametrize("write", ["remember", "change"])
def test_a_write_inside_of_a_change_is_refused(write, alice, files):
    """It would wait for itself; nothing of it is written, and the next write works."""
    entries = alice.items(ItemKind.FRAMEWORK)
    inner = {"remember": lambda: alice.remember("peanuts"), "change": lambda: fill(entries, {"a": b"1"})}
    with contextlib.suppress(Undo), files.change() as there:
        there["new"] = b"1"
        with pytest.raises(StoreBusyError):
            inner[write]()
        raise Undo
    assert (files.read(), alice.count()) == ({}, 0)
    alice.remember("peanuts")
    fill(files)


@pytest.mark.parametrize("how", ["dropped", "replaced"])
def test_what_was_removed_is_not_in_the_log_either(how, files, tmp_path):
    """As after `forget`: what the change overwrites in the file does not stay in the write-ahead log."""
    fill(files)
    with files.change() as there:
        name = next(iter(there))
        if how == "dropped":
            del there[name]
        else:
            there[name] = b"another"
    [log] = tmp_path.rglob("*-wal")
    assert log.stat().st_size == 0


def test_a_block_that_raises_changes_nothing(files, opened):
    """Whatever it did before: another process, too, sees what was there; the next change works."""
    fill(files)
    with contextlib.suppress(Undo), files.change() as there:
        there.clear()
        there["new"] = b"x"
        raise Undo
    assert files.read() == files_of(opened()).read() == FILES
    fill(files, {"new": b"y"})
    assert files.read() == {**FILES, "new": b"y"}


def test_a_block_that_changes_nothing_writes_nothing(files, store):
    """No generation, no commit; not even a user is made."""
    with files.change():
        pass
    assert store.count_users() == 0
    fill(files)
    with store._parts.database.read() as connection:
        before = store._parts.vault.seals(connection, "alice")
    fill(files)
    with store._parts.database.read() as connection:
        assert store._parts.vault.seals(connection, "alice") == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a lone surrogate \ud800", b""),
        ("text", "text"),
        ("a bytearray", bytearray(b"x")),
        ("nothing", None),
        ("a number", 7),
        (b"bytes", b""),
        (None, b""),
        (7, b""),
    ],
    ids=repr,
)
def test_what_is_no_item_is_refused(files, name, content):
    """With an error that shows neither name nor content, and nothing of the block is written."""
    fill(files)
    with pytest.raises(InvalidInputError) as caught:
        fill(files, {"another": b"fine", name: content})
    assert "surrogate \ud800" not in str(caught.value)
    assert files.read() == FILES


def test_an_item_may_be_so_large_and_no_larger(files, opened):
    """4 MiB with its name go in and come back; a byte more is refused, and nothing is written."""
    largest = b"x" * (MAX_ITEM_BYTES - 4)
    fill(files, {"name": largest})
    assert files_of(opened()).read() == {"name": largest}
    for content in ({"name": largest + b"x"}, {"name": largest, "n\u00e4me": largest}):
        with pytest.raises(LimitExceededError) as caught, files.change() as there:
            there |= {"small": b"x", **content}
        assert caught.value.evidence == {"limit": MAX_ITEM_BYTES}
    assert files.read() == {"name": largest}


# --- Users, handles, RAM ---


def test_two_users_with_the_same_names(store, opened):
    """Each has their own, and what one changes or drops is not the other's."""
    for name in ("alice", "bob"):
        fill(files_of(store, name), {"notes": name.encode(), "other": b"same"})
    with files_of(store, "alice").change() as there:
        there["notes"] = b"alice again"
        del there["other"]
    for handle in (store, opened()):
        assert files_of(handle, "alice").read() == {"notes": b"alice again"}
        assert files_of(handle, "bob").read() == {"notes": b"bob", "other": b"same"}
    store.user("alice").erase()
    assert files_of(store, "bob").read() == {"notes": b"bob", "other": b"same"}


def test_two_handles_see_each_others_changes_at_once(files, opened):
    """New, replaced, dropped and put anew, each seen by the other's next call, whichever holds what in RAM."""
    others = files_of(opened())
    here, there = files, others
    expected: dict[str, bytes] = {}
    for number in range(12):
        with here.change() as content:
            assert content == expected
            content[f"new {number}"] = content["same"] = str(number).encode()
            content.pop(f"new {number - 2}", None)
            if number % 3 == 0:
                content.pop("now and then", None)
            else:
                content["now and then"] = b"x" * number
            expected = dict(content)
        assert there.read() == here.read() == expected
        here, there = there, here


def test_a_memory_that_is_forgotten_while_items_change(alice, files, opened):
    """Another process drops memories and items in any mixture between two looks; both are found out at once."""
    other = opened().user("alice")
    ids = [alice.remember(f"turn {number}").id for number in range(6)]
    fill(files, {str(number): b"x" for number in range(6)})
    assert other.count() == 6
    for number in range(6):
        alice.forget(ids[number])
        with files.change() as there:
            del there[str(number)]
            there["last"] = str(number).encode()
        alice.remember(f"another turn {number}")
        assert other.items(ItemKind.TOOL_FILE).read() == files.read()
        assert other.count() == alice.count() == 6
        assert {turn.text for turn in other.history()} == {turn.text for turn in alice.history()}


def test_items_go_with_their_user_from_ram_and_come_back(opened):
    """They count in the budget, are evicted with the index, and are read anew from the rows."""
    store = opened(cache_bytes=1)
    fill(files_of(store, "alice"), {"large": b"a" * 1_000_000})
    fill(files_of(store, "bob"), {"small": b"b"})
    files_of(store, "alice").read()
    assert store._parts.residents.nbytes > 1_000_000
    files_of(store, "bob").read()
    assert store._parts.residents.nbytes < 500_000
    assert files_of(store, "alice").read() == {"large": b"a" * 1_000_000}
    with files_of(store, "alice").change() as there:
        there["large"] = b"a"
    files_of(store, "alice").read()
    assert store._parts.residents.nbytes < 500_000


def test_items_that_somebody_keeps_count_in_the_budget(opened):
    """An adapter holds them for as long as it lives, and the user may have been evicted in between."""
    store = opened(cache_bytes=1)
    kept = files_of(store, "alice")
    fill(kept, {"large": b"a" * 1_000_000})
    kept.read()
    files_of(store, "bob").read()
    kept.read()
    assert store._parts.residents.nbytes > 1_000_000


def test_what_items_take_in_ram_is_counted_without_a_rest(store):
    """After any changes the sum is that of what is there, and nothing is left when it was freed."""
    for content in ({"a": b"x" * 9_999, "b": b"y"}, {"a": b"x", "c": b"z" * 500}, {}, {"d": b"w"}):
        with files_of(store).change() as there:
            there.clear()
            there |= content
        files_of(store).read()
        counted = store._parts.residents.nbytes
        store._parts.residents.clear()
        assert store._parts.residents.nbytes == 0
        files_of(store).read()
        assert store._parts.residents.nbytes == counted


def test_threads_and_handles_lose_nothing(alice, opened, store):
    """Four threads of each of two handles change items and remember at once: every change of every one is there."""
    handles = [store, opened()]
    rounds = 10
    ready = threading.Barrier(8)

    def work(number: int) -> None:
        user = handles[number % 2].user("alice")
        items = user.items(ItemKind.TOOL_FILE)
        ready.wait()
        for step in range(rounds):
            with items.change() as there:
                there["count"] = str(int(there.get("count", b"0")) + 1).encode()
                there[f"{number} {step}"] = b"x"
                there.pop(f"{number} {step - 3}", None)
            user.remember(f"thread {number} step {step}")
            assert f"{number} {step}" in items.read()
            user.capture(user.prepare([{"role": "user", "content": f"{number} asks {step}"}]), "an answer")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    expected = {"count": str(8 * rounds).encode()}
    expected |= {f"{number} {step}": b"x" for number in range(8) for step in range(rounds - 3, rounds)}
    for handle in (*handles, opened()):
        user = handle.user("alice")
        assert user.items(ItemKind.TOOL_FILE).read() == expected
        assert len(user.items(ItemKind.LEDGER).read()) == 8 * rounds
        assert user.count() == 3 * 8 * rounds
    assert store.verify().memories == 3 * 8 * rounds


# --- Erasing, moving, checking ---


def test_erasing_takes_the_items_with_it(alice, files, store, opened):
    """None is left for a new user of the name, in either handle, and none in the file."""
    other = files_of(opened())
    alice.remember("hello")
    fill(files)
    assert other.read() == FILES
    assert alice.erase().memories == 1
    assert files.read() == other.read() == {}
    fill(files, {"new": b"x"})
    assert files.read() == other.read() == {"new": b"x"}
    with store._parts.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM items").scalar() == 1


def test_an_export_leaves_items_out(alice, files, store, tmp_path, monkeypatch):
    """Only memories move; the items of a user who imports stay as they are."""
    monkeypatch.setattr("memlayer.memory.write_export", lambda *args, **options: exporting.write_export(
        *args, **options, cost=FAST_FOR_TESTS))  # fmt: skip
    alice.remember("hello")
    fill(files)
    fill(files_of(store, "bob"), {"a.md": b"bob's"})
    assert alice.export(tmp_path / "alice.export", passphrase="correct horse battery staple") == 1
    store.user("bob").import_(tmp_path / "alice.export", passphrase="correct horse battery staple")
    assert files_of(store, "bob").read() == {"a.md": b"bob's"}
    assert store.user("bob").count() == 1
    assert files.read() == FILES


def test_a_backup_carries_items(files, store, tmp_path):
    """The copy opens with the same key and has them all."""
    fill(files)
    store.backup(tmp_path / "copy.db")
    with MemoryStore.open(tmp_path / "copy.db", keys=KEY, embedder=HashingEmbedder()) as copy:
        assert files_of(copy).read() == FILES
        assert copy.verify().users == 1


@pytest.mark.parametrize("statement", [
    "DELETE FROM items WHERE rowid = (SELECT min(rowid) FROM items)",
    "UPDATE items SET kind = 3 WHERE rowid = (SELECT min(rowid) FROM items)",
    "UPDATE items SET version = version + 1 WHERE rowid = (SELECT max(rowid) FROM items)",
    "UPDATE items SET sealed = zeroblob(length(sealed)) WHERE rowid = 1",
])  # fmt: skip
def test_verify_counts_items(files, store, statement):
    """One that is gone, of another kind, of another generation or not authentic is found by `verify`."""
    fill(files)
    assert store.verify().memories == 0
    with store._parts.database.write() as connection:
        connection.exec_driver_sql(statement)
    with pytest.raises(StoreDamagedError):
        store.verify()
    store._parts.residents.clear()
    with pytest.raises(StoreDamagedError):
        files_of(store).read()


def test_an_older_user_is_a_rollback(files, store):
    """Items that another writer put back to what they were are not read as if nothing had happened."""
    fill(files, {"a": b"1"})
    with store._parts.database.read() as connection:
        old = {
            table: connection.exec_driver_sql(f"SELECT * FROM {table}").fetchall()
            for table in ("users", "directory", "items")
        }
    fill(files, {"a": b"2"})
    assert files.read() == {"a": b"2"}
    with store._parts.database.write() as connection:
        for table, rows in old.items():
            for row in rows:
                marks = ", ".join("?" * len(row))
                connection.exec_driver_sql(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", tuple(row))
    with pytest.raises(RollbackDetectedError):
        files.read()


def test_a_store_that_can_only_be_read(files, store, opened, monkeypatch):
    """Its items are read, and a change is refused with nothing changed."""
    fill(files)
    store.close()
    monkeypatch.setattr("os.access", lambda *_: False)  # whoever runs the tests may write everywhere
    only = opened()
    assert only.read_only
    assert files_of(only).read() == FILES
    with pytest.raises(ReadOnlyStoreError):
        fill(files_of(only), {"new": b"x"})
    assert files_of(only).read() == FILES


# --- What is sealed ---


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"\0\0\0\2x", b"\xff\xff\xff\xffname", b"\0\0\0\1\xff"], ids=repr)
def test_an_item_that_nothing_of_ours_wrote_is_damage(content):
    """A length that is cut, or larger than what follows, and a name that is no UTF-8."""
    item: Any = SimpleNamespace(content=content)
    with pytest.raises(StoreDamagedError):
        named(item)


def test_the_least_item():
    """Without a name and without content."""
    item: Any = SimpleNamespace(content=bytes(4))
    assert named(item) == ("", b"")


def test_kinds_keep_their_numbers():
    """They are part of the format."""
    assert {kind.name: kind.value for kind in ItemKind} == {
        "LEDGER": 1,
        "TOOL_FILE": 2,
        "FRAMEWORK": 3,
        "VECTORS": 4,
        "FACTS": 5,
        "IMAGE": 6,
    }
