"""`MemoryStore.reembed`: another embedder for a store that is in use, and no user searched with the wrong vectors."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sqlcipher3 import dbapi2
from typer.testing import CliRunner

from memlayer import (
    AsyncMemoryStore,
    ConflictError,
    EmbedderError,
    EmbedderIdentity,
    EmbedderMismatchError,
    MemoryStore,
    RawKey,
    ReadOnlyStoreError,
    StoreDamagedError,
    Turn,
    tables,
)
from memlayer import reembedding as module
from memlayer.cli.app import app
from memlayer.filters import Condition
from memlayer.items import ItemKind
from memlayer.reembedding import Reembedding
from memlayer.store import open_to_reembed
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memlayer.memory import UserMemory

KEY = RawKey(bytes(range(32)))
USERS = {"alice": 12, "bob": 5, "carol": 1}
WORDS = ["cello", "otter", "violet", "harbour", "walnut", "copper"]
WORDS += ["meadow", "lantern", "saffron", "glacier", "thimble", "orchard"]


class Other(HashingEmbedder):
    """A space of its own, of any length: the words of a text in reverse.

    `stop_after` texts it fails, as a provider that is down; `during` is called while it embeds documents.
    """

    def __init__(self, dimensions: int = 64, *, name: str = "other", stop_after: int | None = None) -> None:
        super().__init__(dimensions)
        self._own = EmbedderIdentity(model=f"tests/{name}", dimensions=dimensions)
        self.stop_after = stop_after
        self.during: Any = None
        self.seen: Counter[str] = Counter()

    @property
    def identity(self) -> EmbedderIdentity:
        return self._own

    def _vector(self, text: str) -> Any:
        return np.roll(super()._vector(text[::-1]), 7)

    def embed_documents(self, texts: Any) -> Any:
        if self.stop_after is not None:
            if len(texts) > self.stop_after:
                raise RuntimeError("the provider is down")
            self.stop_after -= len(texts)
        self.seen.update(texts)
        if self.during is not None:
            call, self.during = self.during, None
            call()
        return super().embed_documents(texts)


def texts(name: str) -> list[str]:
    return [f"{name} said {word} {number}" for number, word in enumerate(WORDS[: USERS[name]])]


def opened(path: Path, embedder: Any, **options: Any) -> MemoryStore:
    return MemoryStore.open(path, keys=KEY, embedder=embedder, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of three users, closed, in the space of `HashingEmbedder(64)`."""
    path = tmp_path / "memories.db"
    with opened(path, HashingEmbedder()) as store:
        for name in USERS:
            user = store.user(name)
            user.remember_many([Turn(text=text, session="s") for text in texts(name)])
            with user.items(ItemKind.TOOL_FILE).change() as items:
                items["notes"] = b"of " + name.encode()
    return path


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three texts in a call, one user in a group, and everything is saved at once."""
    monkeypatch.setattr(module, "_TEXTS_AT_ONCE", 3)
    monkeypatch.setattr(module, "_USERS_AT_ONCE", 1)
    monkeypatch.setattr(module, "SAVE_AFTER_SECONDS", 0.0)


def nearest(user: UserMemory, text: str) -> str:
    """The text whose vector is nearest to the question's, as a recall embeds it; common words count for nothing."""
    with user._searching(text, without=()) as (index, vector, *_):
        assert index is not None
        return index.search(vector, k=1, condition=Condition(), floor=0)[0].text


def finds(store: MemoryStore, name: str) -> bool:
    """Whether each text of the user's is found by itself, and by its vector alone."""
    user = store.user(name)
    return all(user.recall(text, k=1)[0].text == nearest(user, text) == text for text in texts(name))


def numbers(path: Path) -> dict[str, set[int]]:
    """The embedders of the rows, by table, as a reader without a key sees them."""
    connection = dbapi2.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return {
            table: {number for (number,) in connection.execute(f"SELECT embedder_no FROM {table}")}
            for table in ("records", "embedders")
        }
    finally:
        connection.close()


def saved(path: Path) -> int:
    connection = dbapi2.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT count(*) FROM items WHERE kind = ?", (ItemKind.VECTORS,)).fetchone()[0])
    finally:
        connection.close()


@contextmanager
def stopped_midway(path: Path, new: Other) -> Iterator[MemoryStore]:
    """The store with the old embedder, after a move to `new` that its embedder broke off, once one user was moved."""
    store = opened(path, HashingEmbedder())
    try:
        moved = 0
        move = store._parts.vault.move  # type: ignore[union-attr]

        def one(*arguments: Any, **options: Any) -> Any:
            nonlocal moved
            moved += 1
            new.stop_after = 0
            return move(*arguments, **options)

        store._parts.vault.move = one  # type: ignore[union-attr,method-assign]
        with pytest.raises(EmbedderError):
            store.reembed(new)
        assert moved == 1
        del store._parts.vault.move  # type: ignore[union-attr]
        new.stop_after = None
        yield store
    finally:
        store.close()


def alice_alone(path: Path) -> None:
    """The others are erased, so that it is her turn."""
    with opened(path, HashingEmbedder()) as store:
        store.user("bob").erase()
        store.user("carol").erase()


def spaces(store: MemoryStore) -> dict[str, int]:
    """By user, the embedder that the profile names."""
    parts = store._open_parts()
    found = {}
    for name in USERS:
        with parts.database.read() as connection:
            user = parts.vault.unlock(connection, name)
            if user is not None:
                found[name] = user.embedder_no
    return found


# --- The whole way ---


@pytest.mark.parametrize("dimensions", [16, 64, 384])
def test_every_memory_is_in_the_new_space(path, dimensions):
    """All users are found by their texts, through handles from before; nothing of the memories is another one; verify
    passes; the next process opens the store with the new embedder, and not with the old one."""
    new = Other(dimensions)
    with opened(path, HashingEmbedder()) as store:
        handles = {name: store.user(name) for name in USERS}
        before = {name: list(handles[name].history()) for name in USERS}
        report = store.reembed(new)
        assert (report.users, report.memories, report.embedded, report.files_clean) == (3, 18, 18, True)
        assert store.embedder == new.identity
        for name, user in handles.items():
            assert list(user.history()) == before[name]
            assert user.items(ItemKind.TOOL_FILE).read() == {"notes": b"of " + name.encode()}
            assert finds(store, name)
        new_turn = handles["bob"].remember("bob said marmalade")
        assert handles["bob"].recall("bob said marmalade", k=1)[0].id == new_turn.id
        store.user("dora").remember("dora is new")
        assert store.verify().memories == 20
    assert numbers(path) == {"records": {2}, "embedders": {2}}
    with opened(path, Other(dimensions)) as store:
        assert all(finds(store, name) for name in USERS)
        store.verify()
    with pytest.raises(EmbedderMismatchError, match="tests/other"):
        opened(path, HashingEmbedder())


def test_each_text_is_embedded_once(path, small_steps):
    """By the new embedder, beside the one word that it is tried with; and never by the old one."""
    old, new = HashingEmbedder(), Other()
    with opened(path, old) as store:
        store.reembed(new)
    assert old.texts == 0
    assert new.seen == Counter([text for name in USERS for text in texts(name)]) + Counter(["memlayer"])


def test_the_texts_are_not_sealed_again(path):
    """A move changes vectors alone: every text field is the same bytes as before."""

    def sealed() -> set[bytes]:
        connection = dbapi2.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return {text for (text,) in connection.execute("SELECT text FROM records")}
        finally:
            connection.close()

    before = sealed()
    with opened(path, HashingEmbedder()) as store:
        store.reembed(Other(32))
    assert sealed() == before


def test_long_texts_keep_their_parts(tmp_path):
    """A text over the new embedder's window has a vector a part, and is found by any of them."""
    with opened(tmp_path / "m.db", HashingEmbedder()) as store:
        alice = store.user("alice")
        alice.remember_many([Turn(text=" ".join(WORDS)), Turn(text="something else")])
        store.reembed(HashingEmbedder(128, window=3))
        assert nearest(alice, " ".join(WORDS[6:9])) == " ".join(WORDS)
        store.verify()


def test_to_the_same_embedder_nothing_is_moved(path):
    """Nothing is embedded, and the store is as it was; only the file is written anew."""
    embedder = HashingEmbedder()
    with opened(path, embedder) as store:
        report = store.reembed(HashingEmbedder())
        assert (report.users, report.memories, report.embedded, report.files_clean) == (0, 0, 0, True)
        assert finds(store, "alice")
    assert numbers(path)["embedders"] == {1}


def test_back_and_forth(path):
    """A store may be moved as often as one likes; a number is never used twice."""
    with opened(path, HashingEmbedder()) as store:
        for step, embedder in enumerate([Other(16), HashingEmbedder(), Other(16), Other(80)]):
            store.reembed(embedder)
            assert numbers(path) == {"records": {step + 2}, "embedders": {step + 2}}
            assert all(finds(store, name) for name in USERS)
            store.verify()


def test_an_empty_store_and_a_user_with_nothing(tmp_path):
    """A store without users is moved, and so is a user whose memories were all forgotten."""
    with opened(tmp_path / "m.db", HashingEmbedder()) as store:
        store.reembed(Other())
        alice = store.user("alice")
        alice.forget(alice.remember("something").id)
        assert store.reembed(HashingEmbedder(32)).users == 1
        alice.remember("otter and cello")
        assert alice.recall("cello otter")
        store.verify()


@pytest.mark.parametrize("many", [False, True])
def test_the_progress_is_told(path, small_steps, many, monkeypatch):
    """It never goes back, and ends where all memories are done."""
    if many:
        monkeypatch.setattr(module, "_USERS_AT_ONCE", 64)
    told: list[tuple[int, int]] = []
    with opened(path, HashingEmbedder()) as store:
        store.reembed(Other(), progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert (told[0], told[-1]) == ((0, 18), (18, 18))
    assert len(told) > 5


def test_a_bar_is_shown_or_a_line_logged(path, capsys, caplog, monkeypatch):
    """`progress=True` shows a bar on stderr; without rich it logs, and says nothing of the memories."""
    with opened(path, HashingEmbedder()) as store:
        store.reembed(Other(), progress=True)
        assert "embedding anew" in capsys.readouterr().err
        monkeypatch.setitem(sys.modules, "rich.progress", None)
        with caplog.at_level(logging.INFO, "memlayer"):
            store.reembed(HashingEmbedder(), progress=True)
        assert "embedding anew: 18 of 18" in caplog.text
        assert "cello" not in caplog.text


def test_it_can_be_awaited(path):
    """`AsyncMemoryStore.reembed` does the same."""

    async def run() -> None:
        async with AsyncMemoryStore.open(path, keys=KEY, embedder=HashingEmbedder()) as store:
            assert (await store.reembed(Other(32))).memories == 18
            assert store.embedder.dimensions == 32
            assert len(await store.user("alice").recall(texts("alice")[0], k=1)) == 1

    asyncio.run(run())


# --- Interrupted ---


def test_after_a_failure_the_same_call_goes_on(path, small_steps):
    """What was done is not done again: each text is embedded once in both calls together, but for the batch at hand."""
    new = Other(32)
    with stopped_midway(path, new) as store:
        assert numbers(path)["embedders"] == {1, 2}
        assert sorted(spaces(store).values()) == [1, 1, 2]
        assert all(finds(store, name) for name in USERS)  # It has both.
        store.verify()
        report = store.reembed(new)
        assert report.users == 2
        assert all(finds(store, name) for name in USERS)
        store.verify()
    assert all(count == 1 for text, count in new.seen.items() if text != "memlayer")
    assert saved(path) == 0


def test_what_was_saved_is_not_embedded_again(path, small_steps):
    """A move that ends in the middle of a user begins again with the vectors that it had saved."""
    new = Other(32, stop_after=1 + 6)
    alice_alone(path)
    with opened(path, HashingEmbedder()) as store:
        with pytest.raises(EmbedderError):
            store.reembed(new)
        assert saved(path) == 6
        assert finds(store, "alice")
    new.stop_after = None
    with opened(path, HashingEmbedder()) as store:
        assert finds(store, "alice")
        assert store.verify().memories == 12
        assert store.reembed(new).embedded == 6
        assert finds(store, "alice")
        store.verify()
    assert all(new.seen[text] == 1 for text in texts("alice"))
    assert saved(path) == 0


def test_an_embedder_that_does_not_work_begins_nothing(path):
    """It is tried with one word first; the store stays as it was."""
    with opened(path, HashingEmbedder()) as store:
        with pytest.raises(EmbedderError):
            store.reembed(Other(stop_after=0))
        assert all(finds(store, name) for name in USERS)
    assert numbers(path) == {"records": {1}, "embedders": {1}}


def test_a_process_with_the_new_embedder_alone_can_go_on(path, small_steps):
    """The old one is not needed: not to go on, and not to begin with `open_to_reembed`."""
    new = Other(32)
    with stopped_midway(path, new):
        pass
    with opened(path, Other(32)) as store:
        assert store.reembed(Other(32)).users == 2
        assert all(finds(store, name) for name in USERS)
    with open_to_reembed(path, keys=KEY, embedder=HashingEmbedder(48)) as store:
        assert store.reembed(HashingEmbedder(48)).users == 3
        assert all(finds(store, name) for name in USERS)
        store.verify()


def test_going_back_midway(path, small_steps):
    """To the old embedder: the users who had not been moved keep their vectors, and only the others are embedded."""
    new, old = Other(32), Other(64, name="back")
    with opened(path, HashingEmbedder()) as store:
        store.reembed(old)
    with opened(path, old) as store:
        moved = 0
        with pytest.raises(EmbedderError):
            store.reembed(Other(32, stop_after=1 + 12))
        moved = sum(USERS[name] for name, number in spaces(store).items() if number == 3)
        old.seen.clear()
        report = store.reembed(old)
        assert report.embedded == moved < 18
        assert (report.users, set(spaces(store).values())) == (3, {4})
        assert all(finds(store, name) for name in USERS)
        store.verify()
    assert numbers(path) == {"records": {4}, "embedders": {4}}
    assert saved(path) == 0
    assert new.texts == 0


def test_another_goal_midway(path, small_steps):
    """A later move to a third embedder takes everybody along, and what was saved for the second goes."""
    with stopped_midway(path, Other(32)) as store:
        third = Other(40, name="third")
        assert store.reembed(third).users == 3
        assert all(finds(store, name) for name in USERS)
        store.verify()
    assert numbers(path) == {"records": {3}, "embedders": {3}}
    assert saved(path) == 0


def test_the_newer_move_wins(path, small_steps):
    """Whoever moves the store to the second embedder stops when a move to a third begins, and the third is reached."""
    second, third = Other(32), Other(40, name="third")
    with opened(path, HashingEmbedder()) as store, opened(path, HashingEmbedder()) as other:
        second.during = lambda: None  # The word that it is tried with.

        def later() -> None:
            second.during = lambda: other.reembed(third)

        second.during = later
        with pytest.raises(ConflictError, match="third"):
            store.reembed(second)
        assert other.embedder == third.identity
        assert all(finds(other, name) for name in USERS)
        other.verify()


def test_two_at_once(path, small_steps):
    """Two threads and two handles move the store to one embedder at once: both end, and everybody is moved once."""
    errors: list[BaseException] = []

    def move() -> None:
        try:
            with opened(path, HashingEmbedder()) as store:
                users.append(store.reembed(Other(32)).users)
        except BaseException as error:  # noqa: BLE001  the test's assertion is about it
            errors.append(error)

    users: list[int] = []
    with opened(path, HashingEmbedder()):  # So that both find the old embedder.
        threads = [threading.Thread(target=move) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        # One of them may come too late to open the store with the old embedder.
        assert [type(error) for error in errors] == [EmbedderMismatchError]
    assert sum(users) == 3
    with opened(path, Other(32)) as store:
        assert all(finds(store, name) for name in USERS)
        store.verify()
    assert saved(path) == 0


# --- Never with the wrong vectors ---


@pytest.mark.parametrize("mine", ["old", "new"])
@pytest.mark.parametrize("dimensions", [64, 32])
def test_users_in_the_other_space_are_refused_a_search_and_nothing_else(path, tmp_path, small_steps, mine, dimensions):
    """With one embedder alone, midway: its users are searched and written to; the others' recalls and new memories are
    a typed error that says what to do, whether the vectors are of one length or not; all that needs no vector works."""
    new = Other(dimensions)
    with stopped_midway(path, new):
        pass
    embedder = HashingEmbedder() if mine == "old" else Other(dimensions)
    number = 1 if mine == "old" else 2
    with opened(path, embedder) as store:
        for name, theirs in spaces(store).items():
            user = store.user(name)
            if theirs == number:
                assert finds(store, name)
                vector = embedder.embed_query(texts(name)[0])
                assert user.recall(vector, k=1)[0].text == texts(name)[0]
                assert user.remember("one more").text == "one more"
                continue
            with pytest.raises(EmbedderMismatchError, match="memlayer reembed"):
                user.recall("anything")
            with pytest.raises(EmbedderMismatchError):
                user.recall(np.ones(dimensions if mine == "new" else 64, np.float32))
            with pytest.raises(EmbedderMismatchError):
                user.remember("one more")
            with pytest.raises(EmbedderMismatchError):
                user.remember_many([Turn(text="one more", id="own")])
            with pytest.raises(EmbedderMismatchError):
                user.remember_many([Turn(text="a")], embeddings=np.ones((1, embedder.identity.dimensions), np.float32))
            with pytest.raises(EmbedderMismatchError):
                user.remember_many(
                    [Turn(text="a", id="b")], embeddings=np.ones((1, embedder.identity.dimensions), np.float32)
                )
            turns = user.history()
            assert [turn.text for turn in turns] == texts(name)
            assert user.get(turns[0].id) == turns[0]
            assert user.sessions()[0].count == len(turns)
            with pytest.raises(EmbedderMismatchError):
                user.update(turns[0].id, text="changed")
            assert user.update(turns[0].id, metadata={"a": 1}).metadata == {"a": 1}
            with user.items(ItemKind.TOOL_FILE).change() as items:
                items["more"] = b"more"
            assert user.export(tmp_path / f"{name}.memlayer", passphrase="a passphrase of an export") == len(turns)
            assert user.forget(turns[0].id) == 1
        store.verify()
        store.user("new").remember("a new user has the embedder of whoever writes first")
        assert store.user("new").recall("new user")
    with opened(path, Other(dimensions)) as store:
        store.reembed(Other(dimensions))
        assert store.user("new").recall("new user")
        store.verify()


def test_vectors_of_the_other_space_do_not_open(path, small_steps):
    """The identity's digest is in the associated data: a row under the other number, or with its profile under it, is
    damage, never a neighbour."""
    with stopped_midway(path, Other(64)) as store:
        parts = store._open_parts()
        for name, number in spaces(store).items():
            with parts.database.read() as connection:
                user = parts.vault.unlock(connection, name)
                assert user is not None
                row = tables.read_records(connection, user.uref, after=0)[0]
            other = 3 - number
            assert parts.vault.sealer.open_vectors(row, user=user)[0].shape == (1, 64)
            with pytest.raises(StoreDamagedError, match="names another embedder"):
                parts.vault.sealer.open_vectors(row._replace(embedder_no=other), user=user)
            with pytest.raises(StoreDamagedError, match="does not authenticate"):
                parts.vault.sealer.open_vectors(row._replace(embedder_no=other), user=replace(user, embedder_no=other))


SURGERY = {
    "a record under the other number": "UPDATE records SET embedder_no = 3 - embedder_no WHERE rowid = 1",
    "all records under the other number": "UPDATE records SET embedder_no = 3 - embedder_no",
    "no old embedder": "DELETE FROM embedders WHERE embedder_no = 1",
    "no new embedder": "DELETE FROM embedders WHERE embedder_no = 2",
    "a third embedder": "INSERT INTO embedders SELECT 3, sealed FROM embedders WHERE embedder_no = 2",
    "the embedders swapped": "UPDATE embedders SET embedder_no = 3 - embedder_no + 10",
    "a saved vector gone": f"DELETE FROM items WHERE kind = {ItemKind.VECTORS:d}",
    "a saved vector as a file": f"UPDATE items SET kind = 2 WHERE kind = {ItemKind.VECTORS:d}",
}


@pytest.mark.parametrize("name", SURGERY)
def test_surgery_midway_is_damage(path, small_steps, name):
    """Rows that somebody without the key changes while a store is half moved: an error, never another answer."""
    if "saved" in name:
        alice_alone(path)
    with opened(path, HashingEmbedder()) as store, pytest.raises(EmbedderError):
        store.reembed(Other(64, stop_after=1 + 6))
    connection = dbapi2.connect(str(path))
    assert connection.execute(SURGERY[name]).rowcount
    connection.commit()
    connection.close()
    with pytest.raises(StoreDamagedError), opened(path, HashingEmbedder()) as store:
        store.verify()


def test_a_removed_embedder_that_is_put_back_is_damage(path):
    """After a move the old embedder's row is no part of the store."""
    connection = dbapi2.connect(str(path))
    old = connection.execute("SELECT * FROM embedders").fetchone()
    with opened(path, HashingEmbedder()) as store:
        store.reembed(Other())
        connection.execute("INSERT INTO embedders VALUES (?, ?)", old)
        connection.commit()
        connection.close()
        with pytest.raises(StoreDamagedError, match="embedders"):
            store.verify()
    with pytest.raises(StoreDamagedError, match="embedders"):
        opened(path, Other())


def test_an_old_profile_that_is_put_back_is_damage(path):
    """The profile says which space a user is in; the one from before the move is refused."""
    connection = dbapi2.connect(str(path))
    old = connection.execute("SELECT profile, uref FROM users").fetchall()
    with opened(path, HashingEmbedder()) as store:
        store.reembed(Other())
    connection.executemany("UPDATE users SET profile = ? WHERE uref = ?", old)
    connection.commit()
    connection.close()
    with opened(path, Other()) as store, pytest.raises(StoreDamagedError):
        store.user("alice").recall("cello")


def test_another_process_with_the_old_embedder(path):
    """One that has the store open meanwhile and after: its users go on until they are moved, and from then on its
    recalls and new memories are typed errors, also for users whom it had in RAM, and for users who are new."""
    with opened(path, HashingEmbedder()) as late, opened(path, HashingEmbedder()) as store:
        assert all(finds(late, name) for name in USERS)
        new = Other(64)
        checks: list[bool] = []

        def look() -> None:
            new.during = lambda: checks.extend(finds(late, name) for name in USERS)

        new.during = look
        store.reembed(new)
        assert checks == [True] * 3
        for name in USERS:
            with pytest.raises(EmbedderMismatchError):
                late.user(name).recall("cello")
            assert [turn.text for turn in late.user(name).history()] == texts(name)
        with pytest.raises(EmbedderMismatchError):
            late.user("dora").remember("a new user")
        with late.user("dora").items(ItemKind.TOOL_FILE).change() as items:
            items["a"] = b"no vector in it"
        store.user("dora").remember("a new user")
        assert store.user("dora").recall("new user")
        assert late.verify().memories == 19
        # It may be given the new embedder, without being opened again.
        assert late.reembed(Other(64)).users == 0
        assert all(finds(late, name) for name in USERS)


def test_callers_vectors_are_of_the_stores_embedder(path, small_steps):
    """A process that has both takes vectors of the embedder that it was opened with, until the move has ended; a user
    in the other space refuses them, though their length is right."""
    old, new = HashingEmbedder(64), Other(64)
    with stopped_midway(path, new) as store:
        for name, number in spaces(store).items():
            user, vector = store.user(name), old.embed_query(texts(name)[0])
            if number == 1:
                assert user.recall(vector, k=1)[0].text == texts(name)[0]
                user.remember_many([Turn(text="extra")], embeddings=old.embed_documents(["extra"]))
            else:
                with pytest.raises(EmbedderMismatchError):
                    user.recall(vector)
                with pytest.raises(EmbedderMismatchError):
                    user.remember_many([Turn(text="extra")], embeddings=old.embed_documents(["extra"]))
                assert user.remember("written in the space of the user").text in {
                    hit.text for hit in user.recall("written in the space of the user", k=1)
                }
        store.reembed(new)
        for name in USERS:
            assert store.user(name).recall(new.embed_query(texts(name)[-1]), k=1)[0].text == texts(name)[-1]


# --- In between ---


def test_writes_in_between(path, small_steps):
    """While texts are being embedded: new turns, changed and forgotten ones, of the user at work and of others; all of
    it is as it was written, in the new space, and no saved vector of what went is left."""
    new = Other(32)
    with opened(path, HashingEmbedder()) as store, opened(path, HashingEmbedder()) as other:
        alice = other.user("alice")
        turns = alice.history()
        steps = [
            lambda: alice.remember("alice said marmalade"),
            lambda: alice.update(turns[0].id, text="alice said tangerine"),
            lambda: alice.forget(turns[1].id),
            lambda: alice.update(turns[2].id, metadata={"changed": True}),
            lambda: other.user("dora").remember("dora came meanwhile"),
            lambda: alice.remember("alice said turmeric", id="own"),
        ]

        def step() -> None:
            if steps and new.texts > 1:
                # Whoever was moved already is refused by this process, which has the old embedder alone.
                try:
                    steps.pop(0)()
                except EmbedderMismatchError:
                    refused.append(1)
            new.during = step

        refused: list[int] = []
        new.during = step
        store.reembed(new)
        while steps:
            steps.pop(0)
        alice = store.user("alice")
        for turn in alice.history():
            assert alice.recall(turn.text, k=1)[0].id == turn.id
        assert store.verify().users >= 3
        assert set(spaces(store).values()) == {2}
    assert saved(path) == 0
    assert numbers(path) == {"records": {2}, "embedders": {2}}


def test_a_saved_vector_goes_with_its_memory(path, small_steps):
    """Forgetting or changing a memory midway takes the vector along that was saved of it, in the same transaction; the
    others stay."""
    alice_alone(path)
    with opened(path, HashingEmbedder()) as store, pytest.raises(EmbedderError):
        store.reembed(Other(32, stop_after=1 + 6))
    with opened(path, HashingEmbedder()) as store:
        parts, name = store._open_parts(), "alice"
        user, before = store.user(name), saved(path)
        ids = list(user.items(ItemKind.VECTORS).read())
        assert user.items(ItemKind.VECTORS).read()[ids[0]] == b""  # The vectors are not kept in RAM.
        user.forget(ids[0])
        assert saved(path) == before - 1
        user.update(ids[1], text="another text")
        assert saved(path) == before - 2
        with parts.database.read() as connection:
            unlocked = parts.vault.unlock(connection, name)
            assert unlocked is not None
            left = parts.vault.saved_vectors(connection, unlocked, [bytes.fromhex(each) for each in ids])
        assert len(left) == before - 2
        store.verify()
        user.erase()
        assert saved(path) == 0
        store.reembed(Other(32))
        store.verify()


def test_a_user_who_is_erased_in_between(path, small_steps):
    """Stays erased, and whoever begins anew under the same id has nothing of the first one's."""
    new = Other(32)
    with opened(path, HashingEmbedder()) as store, opened(path, HashingEmbedder()) as other:

        def erase() -> None:
            if new.texts <= 1:  # The word that it is tried with.
                new.during = erase
                return
            for name in USERS:
                other.user(name).erase()
            other.user("alice").remember("a new life", id="own")

        new.during = erase
        store.reembed(new)
        assert store.count_users() == 1
        assert [hit.text for hit in store.user("alice").recall("a new life")] == ["a new life"]
        assert store.verify().memories == 1
    assert saved(path) == 0


def test_a_user_who_never_stops_writing_is_moved(path, monkeypatch):
    """With a write between each look and each try, the last texts are embedded inside of the write."""
    new = Other(32)
    with opened(path, HashingEmbedder()) as store, opened(path, HashingEmbedder()) as other:
        count = 0
        begin = Reembedding._check_goal

        def write_first() -> None:
            nonlocal count
            count += 1
            other.user("alice").remember(f"turn number {count}")

        entered = store._open_parts().vault.write

        @contextmanager
        def write() -> Iterator[Any]:
            if new.texts > 1 and count < 40 and spaces(other).get("alice") == 1:
                write_first()
            with entered() as inside:
                yield inside

        monkeypatch.setattr(store._open_parts().vault, "write", write)
        store.reembed(new)
        monkeypatch.undo()
        assert begin is Reembedding._check_goal
        assert 10 <= count < 40
        assert store.user("alice").count() == 12 + count
        assert store.user("alice").recall(f"turn number {count}", k=1)[0].text == f"turn number {count}"
        store.verify()


def test_a_new_user_in_the_old_space_at_the_last_moment(path, monkeypatch):
    """Between the last look and the end another process writes for a new user with the old embedder: the end sees it,
    and moves that user too."""
    with opened(path, HashingEmbedder()) as store, opened(path, HashingEmbedder()) as other:
        finish, left = Reembedding._finish, ["dora", "eric"]

        def late(self: Reembedding) -> bool:
            vault, entered = self._vault, self._vault.write

            @contextmanager
            def write() -> Iterator[Any]:
                if left:
                    other.user(left.pop()).remember("just in time")
                with entered() as inside:
                    yield inside

            vault.write = write  # type: ignore[method-assign]
            try:
                return finish(self)
            finally:
                vault.write = entered  # type: ignore[method-assign]

        monkeypatch.setattr(Reembedding, "_finish", late)
        assert store.reembed(Other(32)).users == 5
        assert store.user("dora").recall("just in time")
        store.verify()
    assert numbers(path) == {"records": {2}, "embedders": {2}}


def test_recalls_in_other_threads_are_right_throughout(path, small_steps):
    """Eight threads recall while the store is moved there and back: each answer is the right text, whichever space the
    user is in at that moment."""
    wrong: list[object] = []
    done = threading.Event()
    with opened(path, HashingEmbedder()) as store:

        def search(name: str) -> None:
            try:
                while not done.is_set():
                    if not finds(store, name):
                        wrong.append(name)
            except BaseException as error:  # noqa: BLE001  the test's assertion is about it
                wrong.append(error)

        threads = [threading.Thread(target=search, args=(name,)) for name in [*USERS, *USERS, "alice", "alice"]]
        for thread in threads:
            thread.start()
        for embedder in (Other(32), HashingEmbedder(), Other(64)):
            store.reembed(embedder)
        done.set()
        for thread in threads:
            thread.join()
        store.verify()
    assert wrong == []


# --- Refused ---


def test_a_store_that_can_only_be_read(path):
    """Is refused before anything is embedded."""
    if os.geteuid() == 0:
        # For root nothing is read-only: the mode of the open database stands for it.
        new = Other()
        with opened(path, HashingEmbedder()) as store:
            store._open_parts().database.mode = "ro"
            with pytest.raises(ReadOnlyStoreError):
                store.reembed(new)
        assert new.texts == 0
        return
    path.chmod(0o400)
    with opened(path, HashingEmbedder()) as store, pytest.raises(ReadOnlyStoreError):
        store.reembed(Other())


def test_a_damaged_user_is_not_moved(path):
    """A record that was removed stays an error: the move does not make the rest the truth."""
    connection = dbapi2.connect(str(path))
    connection.execute("DELETE FROM records WHERE rowid = (SELECT max(rowid) FROM records)")
    connection.commit()
    connection.close()
    with opened(path, HashingEmbedder()) as store, pytest.raises(StoreDamagedError):
        store.reembed(Other())
    with opened(path, HashingEmbedder()) as store, pytest.raises(StoreDamagedError):
        store.verify()


def test_vectors_that_did_not_arrive_undo_the_move(path, monkeypatch):
    """What is written is read back before the old vectors go: a row that is another one then takes all of it back."""
    update = tables.update_vectors

    def lossy(connection: Any, rows: Any, *, were: Any) -> None:
        update(connection, [row._replace(vector=row.vector[:-1] + b"x") for row in rows], were=were)

    monkeypatch.setattr(tables, "update_vectors", lossy)
    with opened(path, HashingEmbedder()) as store:
        with pytest.raises(StoreDamagedError):
            store.reembed(Other())
        monkeypatch.undo()
        assert set(spaces(store).values()) == {1}
        assert all(finds(store, name) for name in USERS)
        store.verify()


# --- Other ways in and out ---


def test_a_backup_midway_goes_on_by_itself(path, tmp_path, small_steps):
    """A copy of a half moved store is one, and can be moved to its end."""
    new = Other(32)
    with stopped_midway(path, new) as store:
        store.backup(tmp_path / "copy.db")
    with opened(tmp_path / "copy.db", HashingEmbedder()) as store:
        store.reembed(Other(32))
        assert all(finds(store, name) for name in USERS)
        store.verify()


def test_export_and_import_know_the_space(path, tmp_path, small_steps):
    """An export midway carries the user's own space: into a user of the same space nothing is embedded, into another
    one everything."""
    new, passphrase = Other(32), "a passphrase of an export"
    with stopped_midway(path, new) as store:
        before = spaces(store)
        files = {name: tmp_path / f"{name}.memlayer" for name in before}
        for name, file in files.items():
            assert store.user(name).export(file, passphrase=passphrase) == USERS[name]
        for name, number in before.items():
            embedder: Any = HashingEmbedder() if number == 1 else Other(32)
            with opened(tmp_path / f"{name}.db", embedder) as into:
                into.user("x").import_(files[name], passphrase=passphrase)
                assert embedder.texts == 0
                assert into.user("x").recall(texts(name)[0], k=1)[0].text == texts(name)[0]
            for target in before.keys() - {name}:
                new.seen.clear()
                store.user(target).import_(files[name], passphrase=passphrase)
                assert store.user(target).recall(texts(name)[0], k=1)[0].text == texts(name)[0]
                assert sum(new.seen.values()) == (USERS[name] if (number, before[target]) == (1, 2) else 0)
        store.verify()


def test_no_old_vector_is_left_in_the_files(tmp_path):
    """After a move no run of 16 sealed bytes of an old vector field is in the file or the log, nor of a saved one."""
    path = tmp_path / "m.db"

    def pieces() -> set[bytes]:
        connection = dbapi2.connect(f"file:{path}?mode=ro", uri=True)
        sealed = [row[0] for row in connection.execute("SELECT vector FROM records")]
        sealed += [row[0] for row in connection.execute("SELECT sealed FROM items WHERE kind = 4")]
        connection.close()
        return {field[at : at + 16] for field in sealed for at in range(18, len(field) - 16, 16)}

    with opened(path, HashingEmbedder(96)) as store:
        for name in "abc":
            store.user(name).remember_many([Turn(text=f"{name} {n} " + "word " * (n % 90)) for n in range(150)])
    old = pieces()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SAVE_AFTER_SECONDS", 0.0)
        patch.setattr(module, "_TEXTS_AT_ONCE", 40)
        with opened(path, HashingEmbedder(96)) as store, pytest.raises(EmbedderError):
            store.reembed(Other(80, stop_after=130))
        assert saved(path)
        old |= pieces()
        with opened(path, HashingEmbedder(96)) as store:
            assert store.reembed(Other(80)).files_clean
    new = pieces()
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert all(piece in content for piece in list(new)[:50])  # The scan can find.
    present = {content[at : at + 16] for at in range(len(content) - 15)}
    assert not (old - new) & present


def test_the_command(path, tmp_path, monkeypatch):
    """`memlayer reembed` moves a store from any embedder to one that it knows by name, says what it did, and does
    nothing the second time; afterwards the other commands, which use that one, work."""
    monkeypatch.setenv("MEMLAYER_KEY", base64.b64encode(bytes(range(32))).decode())
    run = CliRunner()
    missing = run.invoke(app, ["reembed", "all-MiniLM-L6-v2", "--store", str(tmp_path / "none.db")])
    assert (missing.exit_code, (tmp_path / "none.db").exists()) == (7, False)
    first = run.invoke(app, ["reembed", "all-MiniLM-L6-v2", "--store", str(path), "--json"])
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert (told["users"], told["memories"], told["embedded"], told["files_clean"]) == (3, 18, 18, True)
    assert told["embedder"]["model"] == "sentence-transformers/all-MiniLM-L6-v2"
    again = run.invoke(app, ["reembed", "all-MiniLM-L6-v2", "--store", str(path)])
    assert "Moved 0 memories of 0 users" in again.stdout
    recalled = run.invoke(
        app, ["recall", "an instrument", "--user", "alice", "--store", str(path), "--json", "-k", "1"]
    )
    assert recalled.exit_code == 0, recalled.output
    assert "cello" in recalled.stdout
    assert run.invoke(app, ["verify", "--store", str(path)]).exit_code == 0
    unknown = run.invoke(app, ["reembed", "", "--store", str(path)])
    assert unknown.exit_code in (2, 6)
