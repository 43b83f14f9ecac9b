"""Whose memories are whose: queries that lose their WHERE, two tenants at random, and user ids that want to be others.

A mutant is one statement of the SQL layer without one of its WHEREs, or without one condition of it. With each of them
a whole workflow of two users runs, step by step. A step must do what it should or be a typed error; after each one that
the mutant had a part in, somebody without it looks at what both users have.
"""

from __future__ import annotations

import functools
import inspect
import re
from contextlib import nullcontext
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import memlayer
from memlayer import InvalidInputError, MemoryStore, NotFoundError
from memlayer import export as exporting
from memlayer.items import ItemKind
from memlayer.sources import FAST_FOR_TESTS
from tests.faults.mutants import Meddler, Mutant, mutants_of
from tests.faults.workflow import USERS, World, open_store

if TYPE_CHECKING:
    from collections.abc import Iterator


# --- Queries that lose their WHERE ---


@pytest.fixture
def meddler() -> Iterator[Meddler]:
    """Meddles with every engine of this process."""
    meddler = Meddler()
    sa.event.listen(sa.engine.Engine, "before_cursor_execute", meddler.before, retval=True)
    yield meddler
    sa.event.remove(sa.engine.Engine, "before_cursor_execute", meddler.before)


@pytest.fixture(autouse=True)
def _cheap_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memlayer.memory.write_export", functools.partial(exporting.write_export, cost=FAST_FOR_TESTS))


def _enumerated(tmp_path: Path, meddler: Meddler) -> list[Mutant]:
    world = World(tmp_path, meddler)
    world.run()
    assert world.errors == []
    return [mutant for statement in sorted(meddler.seen) for mutant in mutants_of(statement)]


def test_the_workflow_runs_every_where(tmp_path: Path, meddler: Meddler) -> None:
    """The workflow without meddling is right at every step, and runs each WHERE that stands in the SQL layer."""
    mutants = _enumerated(tmp_path, meddler)
    package = Path(memlayer.__file__).parent
    assert sum(mutant.condition is None for mutant in mutants) == (package / "tables.py").read_text().count(".where(")
    elsewhere = [path.name for path in package.rglob("*.py") if re.search(r"\bsa\.(select|update|delete)\(",
                 path.read_text())]  # fmt: skip
    assert elsewhere == ["tables.py"]


def test_a_lost_where_harms_nobody(tmp_path: Path, meddler: Meddler) -> None:
    """Without any one WHERE, or any one condition of one, each step is right or a typed error, and a write that would
    touch another's rows is undone."""
    (tmp_path / "whole").mkdir()
    mutants = _enumerated(tmp_path / "whole", meddler)
    unnoticed = []
    for number, mutant in enumerate(mutants):
        folder = tmp_path / str(number)
        folder.mkdir()
        meddler.mutant, meddler.applied = mutant, 0
        world = World(folder, meddler)
        world.run()
        assert meddler.applied, f"{mutant} was never run"
        print(f"{meddler.applied:5} times, {len(world.errors):2} errors: {mutant}")
        if not world.errors:
            unnoticed.append(str(mutant))
    assert sorted(unnoticed) == sorted(HARMLESS)


# All others are noticed. What is in brackets is what makes these none.
HARMLESS = [
    "DELETE items: items.uref = ?",  # an item's id is made with the user's key and from its kind
    "DELETE items: items.kind = ?",
    "UPDATE items: items.uref = ?",
    "UPDATE items: items.kind = ?",
    "SELECT items: items.uref = ?",  # by id: as above
    "SELECT items: items.kind = ?",
    "SELECT items: items.uref = ?",  # an image, likewise
    "SELECT items: items.kind = ?",
    "SELECT items: items.version > ?",  # it only saves reading what is known
    "DELETE records: records.uref = ?",  # an id is random, or made with the user's key: no two users have the same
    "SELECT records: records.uref = ?",
    "UPDATE records: records.uref = ?",
    "SELECT records: records.memory_id IN (?)",  # a second look takes the right ones
    "UPDATE records: records.uref = ?",  # of a record's vectors: as above
    "UPDATE records: records.vector_version = ?",  # nobody is beside the transaction
    "SELECT records: records.changed > ?",  # it only saves reading what is known
    "SELECT users, directory: WHERE users.uref = ?",  # of the two seals that tell of a change one is enough
    "SELECT users, directory: WHERE directory.bucket = ?",
    "UPDATE meta: WHERE meta.manifest = ?",  # the table has one row, and the transaction nobody beside it
    "UPDATE users: users.generation = ?",  # nor beside the user's
]


# --- Two tenants ---


class Tenants(RuleBasedStateMachine):
    """Two users, at random; whatever one asks, with whatever of the other's, the answer holds nothing of the other."""

    folder: Path
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        Tenants.calls += 1
        self.store = open_store(Tenants.folder / f"{Tenants.calls}.db")
        self.texts: dict[str, dict[str, str]] = {name: {} for name in USERS}
        self.items: dict[str, dict[str, bytes]] = {name: {} for name in USERS}

    def teardown(self) -> None:
        self.store.close()

    def _mine(self, name: str, found: Any) -> None:
        Tenants.calls += 1
        for memory in found:
            assert memory.text == self.texts[name][memory.id]

    def _an_id(self, data: st.DataObject) -> tuple[str, str]:
        """A user, and an id of anybody's."""
        owner = data.draw(st.sampled_from(USERS))
        ids = [*self.texts[owner], "nobody's", "0" * 32]
        return data.draw(st.sampled_from(USERS)), data.draw(st.sampled_from(ids))

    @rule(
        name=st.sampled_from(USERS),
        said=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        id=st.none() | st.sampled_from(["a", "b", "c"]),
        session=st.none() | st.sampled_from(["s", "t"]),
        n=st.integers(0, 3),
    )
    def remember(self, name: str, said: str, id: str | None, session: str | None, n: int) -> None:
        text = f"{name} {said}"
        memory = self.store.user(name).remember(text, id=id, session=session, metadata={"n": n}, replace=True)
        self.texts[name][memory.id] = text

    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        name, own_id = self._an_id(data)
        try:
            self._mine(name, [self.store.user(name).get(own_id)])
        except NotFoundError:
            assert own_id not in self.texts[name]

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        name, own_id = self._an_id(data)
        assert self.store.user(name).forget(own_id) == (self.texts[name].pop(own_id, None) is not None)
        Tenants.calls += 1

    @rule(data=st.data(), said=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
    def update(self, data: st.DataObject, said: str) -> None:
        name, own_id = self._an_id(data)
        try:
            self.store.user(name).update(own_id, text=f"{name} {said}")
        except NotFoundError:
            assert own_id not in self.texts[name]
        else:
            self.texts[name][own_id] = f"{name} {said}"

    @rule(data=st.data(), where=st.sampled_from([None, {"n": 1}, {"$not": {"n": 2}}, {"n": {"$in": [0, 3]}}]))
    def recall(self, data: st.DataObject, where: dict[str, Any] | None) -> None:
        name = data.draw(st.sampled_from(USERS))
        anybody = [*self.texts["alice"].values(), *self.texts["bob"].values(), "alice", "bob"]
        query = data.draw(st.sampled_from(anybody))
        session = data.draw(st.sampled_from([None, "s", "t"]))
        self._mine(name, self.store.user(name).recall(query, k=100, where=where, session=session))

    @rule(name=st.sampled_from(USERS), other=st.sampled_from(USERS), limit=st.integers(1, 5))
    def history(self, name: str, other: str, limit: int) -> None:
        cursor = self.store.user(other).history(limit=limit).cursor
        self._mine(name, self.store.user(name).history(limit=limit, before=cursor))

    @rule(name=st.sampled_from(USERS), session=st.sampled_from(["s", "t"]))
    @precondition(lambda self: self.texts["alice"] and self.texts["bob"])
    def forget_session(self, name: str, session: str) -> None:
        user = self.store.user(name)
        gone = [turn.id for turn in user.history(session=session, limit=10_000)]
        assert user.forget(session=session) == len(gone)
        for own_id in gone:
            del self.texts[name][own_id]

    @rule(name=st.sampled_from(USERS), own=st.sampled_from(["a", "b", "c"]), content=st.none() | st.binary(max_size=9))
    def change_items(self, name: str, own: str, content: bytes | None) -> None:
        for items in (self.store.user(name).items(ItemKind.TOOL_FILE).change(), nullcontext(self.items[name])):
            with items as there:
                if content is None:
                    there.pop(own, None)
                else:
                    there[own] = name.encode() + content
        Tenants.calls += 1

    @rule(name=st.sampled_from(USERS))
    @precondition(lambda self: len(self.texts["alice"]) > 5 and len(self.texts["bob"]) > 5)
    def erase(self, name: str) -> None:
        assert self.store.user(name).erase().memories == len(self.texts[name])
        self.texts[name].clear()
        self.items[name].clear()

    @rule()
    def reopen(self) -> None:
        path = self.store.path
        self.store.close()
        self.store = open_store(path)

    @invariant()
    def both_have_their_own(self) -> None:
        for name in USERS:
            Tenants.calls += 1
            found = {turn.id: turn.text for turn in self.store.user(name).history(limit=10_000)}
            assert found == self.texts[name]
            assert self.store.user(name).items(ItemKind.TOOL_FILE).read() == self.items[name]


def test_two_tenants_at_random(tmp_path: Path) -> None:
    """Over some thousand calls with each other's ids, cursors, sessions, words and names, each sees their own only."""
    Tenants.folder, Tenants.calls = tmp_path, 0
    run_state_machine_as_test(Tenants, settings=settings(max_examples=40, stateful_step_count=40))
    print(f"{Tenants.calls:,} calls")
    assert Tenants.calls > 2_000


# --- User ids ---

DISTINCT = [
    "alice", "Alice", "ALICE", " alice", "alice ", "alice\n", "alice\0", "\0alice", "\0", "alic", "alicee",
    "\uff41lice", "%", "_", "a%", "*", "?", "'", "''", "'; DROP TABLE users; --", '"', "\\", "\\'", "alice' OR '1'='1",
    "../alice", "None", "null", "0", "1", "True", "{}", "[]", "caf\u00e9", "cafe\u0301", "\u212b", "\u00c5", "A\u030a",
    "\u200balice", "\u202eecila", "\ufeffalice", "\u00df", "ss", "\u1e9e", "\u0130", "i\u0307", "\ufb01", "fi", "🙂",
    "🙂\ufe0f", "👨\u200d👩", "👨👩", "a" * 512, "a" * 511, "é" * 256, "\U0010ffff", "\x7f", "\t", " ",
]  # fmt: skip

INVALID = {
    "empty": "",
    "513 bytes": "a" * 513,
    "514 bytes in 257 characters": "é" * 257,
    "10 MB": "a" * 10_000_000,
    "10 MB of surrogates": "\ud800" * 5_000_000,
    "a lone surrogate": "alice\ud800",
    "a low surrogate": "\udc80",
    "None": None,
    "a number": 1,
    "bytes": b"alice",
    "a list": ["alice", "bob"],
    "a tuple": ("alice",),
    "a dict": {"user": "alice"},
    "an object": object(),
    "a boolean": True,
}


def test_ids_that_look_alike_never_meet(tmp_path: Path) -> None:
    """Every id is taken exactly: what differs by case, form, a space or a NUL are different users, for good."""
    assert len(set(DISTINCT)) == len(DISTINCT)
    with open_store(tmp_path / "store.db") as store:
        for number, name in enumerate(DISTINCT):
            store.user(name).remember(f"the secret of number {number}", id="the same id", session=name)
        _each_has_its_own(store)
        assert store.count_users() == len(DISTINCT)
    with open_store(tmp_path / "store.db") as store:
        _each_has_its_own(store)
        store.user("alice").erase()
        store.user("caf\u00e9").erase()
        assert store.count_users() == len(DISTINCT) - 2
        assert store.user("Alice").count() == store.user("cafe\u0301").count() == 1
        assert store.verify().users == len(DISTINCT) - 2


def _each_has_its_own(store: MemoryStore) -> None:
    for number, name in enumerate(DISTINCT):
        user = store.user(name)
        assert [hit.text for hit in user.recall("the secret of number", k=100)] == [f"the secret of number {number}"]
        assert [session.id for session in user.sessions()] == [name]


@pytest.mark.parametrize("kind", INVALID)
def test_an_id_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    """What is no id of 1 to 512 bytes is a typed error, and not a byte is written."""
    name: Any = INVALID[kind]
    with open_store(tmp_path / "store.db") as store:
        store.user("alice").remember("hello")
    before = sha256((tmp_path / "store.db").read_bytes()).digest()
    with open_store(tmp_path / "store.db") as store:
        with pytest.raises(InvalidInputError):
            store.user(name)
        assert store.count_users() == 1
    assert sha256((tmp_path / "store.db").read_bytes()).digest() == before


def test_an_id_of_an_enumeration_is_its_text(tmp_path: Path) -> None:
    """A `StrEnum` stands for the user whose id its value is, not for one of its own."""

    class Name(StrEnum):
        ALICE = "alice"

    with open_store(tmp_path / "store.db") as store:
        store.user(Name.ALICE).remember("hello")
        assert store.user("alice").count() == 1
    with open_store(tmp_path / "store.db") as store:
        assert store.user(Name.ALICE).recall("hello")[0].text == "hello"
        assert store.count_users() == 1


def test_a_user_cannot_be_changed(tmp_path: Path) -> None:
    """Nothing that a `UserMemory` offers takes another user."""
    with open_store(tmp_path / "store.db") as store:
        user = store.user("alice")
        for name, method in inspect.getmembers(user, inspect.ismethod):
            if not name.startswith("_"):
                assert not {"user", "user_id", "users", "owner"} & set(inspect.signature(method).parameters), name
