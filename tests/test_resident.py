"""`memlayer.resident`: a user in RAM is as fresh as the store, and reads nothing back that this process wrote."""

from __future__ import annotations

import random

import pytest

from memlayer import MemoryStore, RawKey, Turn
from memlayer import resident as residents
from memlayer.columns import Columns
from memlayer.database import Database
from memlayer.items import ItemKind
from memlayer.testing import HashingEmbedder
from memlayer.vault import Vault

KEY = RawKey(bytes(32))
EMBEDDER = HashingEmbedder(16)


def opened(path):
    return MemoryStore.open(path, keys=KEY, embedder=EMBEDDER)


@pytest.fixture
def path(tmp_path):
    with opened(tmp_path / "m.db") as store:
        store.user("alice").remember("I like tea", id="tea")
    return tmp_path / "m.db"


@pytest.fixture
def store(path):
    with opened(path) as store:
        yield store


@pytest.fixture
def alice(store):
    alice = store.user("alice")
    alice.count()
    return alice


@pytest.fixture
def counted(monkeypatch):
    """How often a snapshot was taken, and how often records were read."""
    calls = {"snapshots": 0, "records": 0}

    def counting(cls, name, key):
        real = getattr(cls, name)

        def call(*arguments, **options):
            calls[key] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(cls, name, call)

    counting(Database, "read", "snapshots")
    counting(Vault, "read", "records")
    return calls


def texts(user):
    return [turn.text for turn in user.history(limit=1_000)]


def settled(user):
    """The user's place in RAM, once nothing waits to be applied to it."""
    place = user._resident
    assert residents._settling.wait(place, seconds=30)
    return place


def test_where_nothing_was_committed_no_snapshot_is_taken(alice, counted):
    """Recall, history, get and count ask SQLite for a number, and for nothing else."""
    alice.recall("tea")
    alice.history()
    alice.get("tea")
    assert (alice.count(), counted) == (1, {"snapshots": 0, "records": 0})


def test_what_another_handle_commits_is_seen_at_once(path, alice, counted):
    """By whatever connection it was written; another user's write changes nothing."""
    with opened(path) as other:
        other.user("bob").remember("I like milk")
        assert texts(alice) == ["I like tea"]
        other.user("alice").remember("and honey")
        assert texts(alice) == ["I like tea", "and honey"]
        assert {hit.text for hit in alice.recall("honey", min_score=0)} == {"I like tea", "and honey"}
        other.user("alice").forget("tea")
        assert texts(alice) == ["and honey"]
    assert counted["snapshots"] > 0


def test_what_this_process_wrote_is_not_read_back(alice, counted):
    """Neither new memories, nor changed, replaced and forgotten ones, nor items."""
    alice.remember("and honey")
    alice.remember("I like green tea", id="tea", replace=True)
    alice.update("tea", metadata={"n": 1})
    alice.remember("to be forgotten", id="gone", image=b"GIF89a of it")
    alice.forget("gone")
    with alice.items(ItemKind.FRAMEWORK).change() as items:
        items |= {"one": b"1", "two": b"2"}
    with alice.items(ItemKind.FRAMEWORK).change() as items:
        items["one"] = b"another"
        del items["two"]
    assert sorted(texts(alice)) == ["I like green tea", "and honey"]
    assert alice.get("tea").metadata == {"n": 1}
    assert alice.items(ItemKind.FRAMEWORK).read() == {"one": b"another"}
    assert counted["records"] == 0


def test_between_two_turns_it_is_applied(alice, counted):
    """Once nobody has written for a moment the next call finds all of it done."""
    alice.remember("and honey")
    place = settled(alice)
    assert (len(place._index), place._taken) == (2, [])
    counted["snapshots"] = 0
    assert texts(alice) == ["I like tea", "and honey"]
    assert counted == {"snapshots": 0, "records": 0}


def test_an_interrupted_first_question_leaves_nothing_half_made(alice, monkeypatch):
    """The next question is compared with every turn."""
    alice.remember("and honey")
    real, calls = Columns.add, []

    def interrupted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Columns, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            alice.recall("honey")
    assert {hit.text for hit in alice.recall("honey", min_score=0)} == {"I like tea", "and honey"}


def test_an_evicted_user_stays_out(store, alice):
    """What waits to be applied does not bring back who made room for others."""
    alice.remember("and honey")
    place = alice._resident
    store._parts.residents.clear()
    assert residents._settling.wait(place, seconds=30)
    assert (place._index, place._taken) == (None, [])


def test_a_picture_is_not_kept(alice, counted):
    """Nor is anything as large, for as long as nobody reads."""
    alice.remember("look", image=b"GIF89a" + bytes(300_000))
    assert alice._resident._taken == []
    assert texts(alice) == ["I like tea", "look"]


def test_a_large_write_is_read_from_the_rows(alice, counted):
    """Of so much nothing is kept in RAM beside the index."""
    alice.remember_many([Turn(text=f"thing number {number}") for number in range(3_000)])
    assert alice._resident._taken == []
    assert alice.count() == 3_001
    assert counted["records"] == 1


def test_a_write_that_another_came_before_is_read_from_the_rows(path, alice, counted):
    """What this process kept does not start where the index stands: the rows are read, and all is there."""
    with opened(path) as other:
        other.user("alice").remember("first, elsewhere")
        alice.remember("second, here")
    assert texts(alice) == ["I like tea", "first, elsewhere", "second, here"]
    assert counted["records"] == 1


def test_a_write_that_is_undone_leaves_nothing(alice):
    """What was not committed is never applied."""
    with pytest.raises(ZeroDivisionError):
        undone(alice)
    assert settled(alice)._taken == []
    assert texts(alice) == ["I like tea"]


def undone(alice):
    """Deletes all, and fails before the commit."""
    with alice._vault.write() as write, alice._resident.writing(write) as (user, index):
        elements = [int.from_bytes(stamp) for stamp in index.stamps(index.keys()).values()]
        alice._vault.change(write, user, delete=[*index.keys()], were=elements)
        print(1 / 0)


def test_a_user_who_was_erased_begins_anew(path, alice):
    """Nothing that was kept of the one before is applied to the new one."""
    alice.remember("and honey")
    alice.erase()
    alice.remember("another life")
    assert texts(alice) == ["another life"]
    with opened(path) as other:
        assert texts(other.user("alice")) == ["another life"]


def test_a_store_that_is_closed_meanwhile_needs_nothing(path):
    """What waits to be applied is let go, and the file is whole."""
    with opened(path) as store:
        alice = store.user("alice")
        alice.count()
        alice.remember("and honey")
        place = alice._resident
    assert residents._settling.wait(place, seconds=30)
    with opened(path) as store:
        assert texts(store.user("alice")) == ["I like tea", "and honey"]


@pytest.mark.parametrize("seed", range(6))
def test_two_handles_at_random_agree_with_a_new_one(path, seed):
    """Whoever writes what in which order: each handle shows what somebody shows who opens the store afterwards."""
    draw = random.Random(seed)
    with opened(path) as one, opened(path) as two:
        for step in range(60):
            alice = draw.choice([one, two]).user("alice")
            ids = [turn.id for turn in alice.history(limit=1_000)]
            match draw.randrange(6):
                case 0 | 1:
                    alice.remember(f"thing number {step}", id=draw.choice([None, f"id {step}"]))
                case 2 if ids:
                    alice.update(draw.choice(ids), text=f"changed in step {step}")
                case 3 if ids:
                    alice.forget(draw.choice(ids))
                case 4:
                    with alice.items(ItemKind.FRAMEWORK).change() as items:
                        items[f"item {draw.randrange(3)}"] = str(step).encode()
                case 5:
                    alice.remember_many([Turn(text=f"{step}, {number}") for number in range(draw.choice([3, 70]))])
            if draw.random() < 0.2:
                settled(alice)
            if draw.random() < 0.3:
                shown(one, two)
        with opened(path) as three:
            assert shown(one, two) == shown(three)


def shown(*stores):
    """What all of them show."""
    found = []
    for store in stores:
        alice = store.user("alice")
        turns = alice.history(limit=1_000)
        hits = [(hit.id, hit.score) for hit in alice.recall("thing number changed", k=20, min_score=0)]
        found.append((list(turns), hits, alice.items(ItemKind.FRAMEWORK).read()))
    assert all(one == found[0] for one in found)
    return found[0]
