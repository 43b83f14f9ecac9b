"""Export and import between users and stores, as one user's memory does them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from memlayer import (
    ConflictError,
    ExportDamagedError,
    InvalidInputError,
    MemoryStore,
    RawKey,
    StoreMissingError,
    Turn,
    WrongKeyError,
)
from memlayer.testing import HashingEmbedder

PASSPHRASE = "a passphrase for the export"
MAY = datetime(2023, 5, 8, tzinfo=UTC)


@pytest.fixture
def exported(alice, tmp_path):
    """Alice's export: three turns of her own, one of them long, one with an id of its own."""
    alice.remember_many(
        [
            Turn(text="peanuts 🥜", at=MAY, session="s", speaker="A", metadata={"n": [1, None]}, source="document"),
            Turn(text="x" * 70_000, at=MAY, role="tool", expires=MAY + timedelta(days=90_000)),
            Turn(text="with an id", id="own", at=MAY),
        ]
    )
    path = tmp_path / "alice.memlayer"
    assert alice.export(path, passphrase=PASSPHRASE) == 3
    return path


def _content(memory, *, of_its_own=("written",)):
    return memory.model_dump(exclude=set(of_its_own))


def test_an_import_is_equal_to_what_was_exported(store, alice, exported, embedder):
    """Another user gets the same memories, in order, with all that belongs to them, and nothing is embedded."""
    embedded = embedder.texts
    report = store.user("bob").import_(exported, passphrase=PASSPHRASE)
    assert (report.added, report.kept) == (3, 0)
    assert [_content(memory) for memory in store.user("bob").history()] == [_content(m) for m in alice.history()]
    assert store.user("bob").get("own").text == "with an id"
    assert embedder.texts == embedded
    store.verify()


def test_importing_twice_adds_nothing_the_second_time(store, alice, exported):
    """What is there already, with the same content, is kept and not doubled: for the exporter and for a new user."""
    assert alice.import_(exported, passphrase=PASSPHRASE).model_dump() == {"added": 0, "kept": 3}
    bob = store.user("bob")
    assert bob.import_(exported, passphrase=PASSPHRASE).added == 3
    assert bob.import_(exported, passphrase=PASSPHRASE).model_dump() == {"added": 0, "kept": 3}
    bob.forget("own")
    assert bob.import_(exported, passphrase=PASSPHRASE).model_dump() == {"added": 1, "kept": 2}


def test_an_import_that_contradicts_what_is_there_writes_nothing(store, alice, exported):
    """A memory that is there with other content is a ConflictError, and none of the others is added."""
    carol = store.user("carol")
    carol.remember("something else", id="own")
    with pytest.raises(ConflictError):
        carol.import_(exported, passphrase=PASSPHRASE)
    assert len(carol) == 1


def test_vectors_of_another_embedder_are_not_taken(exported, tmp_path):
    """In a store with another embedder the texts are embedded anew, once, and found there."""
    other = HashingEmbedder(32)
    with MemoryStore.open(tmp_path / "other.db", keys=RawKey(bytes(32)), embedder=other) as store:
        dave = store.user("dave")
        assert dave.import_(exported, passphrase=PASSPHRASE).added == 3
        assert other.texts == 3
        assert dave.recall("peanuts", k=1)[0].text == "peanuts 🥜"
        assert dave.import_(exported, passphrase=PASSPHRASE).kept == 3
        assert other.texts == 4  # the query


def test_a_bad_export_is_refused_before_the_first_write(store, exported, tmp_path):
    """A wrong passphrase, a cut, a flip, and a file that is no export are typed errors, and nothing is written."""
    eve = store.user("eve")
    whole = exported.read_bytes()
    with pytest.raises(WrongKeyError):
        eve.import_(exported, passphrase="another passphrase")
    bad = tmp_path / "bad"
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:-100] + b"\0" * 100, b"no export", b""):
        bad.write_bytes(damaged)
        with pytest.raises(ExportDamagedError):
            eve.import_(bad, passphrase=PASSPHRASE)
    with pytest.raises(InvalidInputError):
        eve.import_(tmp_path / "missing", passphrase=PASSPHRASE)
    with pytest.raises(InvalidInputError):
        eve.import_(exported, passphrase="")
    assert store.count_users() == 1


def test_an_export_overwrites_nothing(alice, exported, tmp_path):
    """An existing file, and a folder that is not there, are typed errors, and what was there is as it was."""
    before = exported.read_bytes()
    with pytest.raises(InvalidInputError):
        alice.export(exported, passphrase=PASSPHRASE)
    assert exported.read_bytes() == before
    with pytest.raises(StoreMissingError):
        alice.export(tmp_path / "nowhere" / "a", passphrase=PASSPHRASE)


def test_a_user_who_has_nothing_exports_nothing(store, tmp_path):
    """The export of an empty user imports as nothing."""
    assert store.user("nobody").export(tmp_path / "empty", passphrase=PASSPHRASE) == 0
    assert store.user("nobody").import_(tmp_path / "empty", passphrase=PASSPHRASE).added == 0
    assert store.count_users() == 0


def test_updating_to_the_same_text_embeds_nothing(alice, embedder):
    """An update that does not change the text keeps its vector."""
    alice.remember("peanuts", id="a")
    alice.update("a", text="peanuts", metadata={"n": 1})
    assert (embedder.texts, alice.get("a").metadata) == (1, {"n": 1})
