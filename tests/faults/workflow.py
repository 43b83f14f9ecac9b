"""All that two users can do with one store, step by step, beside somebody who may meddle with its SQL.

Each step asserts that its own answer is right. What it changes is told by the function that it returns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayer import MemlayerError, MemoryStore, NotFoundError, RawKey, StoreDamagedError, Turn
from memlayer.distiller import Distiller
from memlayer.items import ItemKind
from memlayer.store import open_to_reembed
from memlayer.testing import HashingEmbedder
from tests.distilling import turns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from memlayer.injection import Prepared
    from tests.faults.mutants import Meddler

PNG = b"\x89PNG\r\n\x1a\n"
PASSPHRASE = "correct horse battery staple"
USERS = ("alice", "bob")


def open_store(path: Path) -> MemoryStore:
    """The store under test; also where a change of its embedder broke off, and texts alone are asked for."""
    return open_to_reembed(path, keys=RawKey(bytes(32)), embedder=HashingEmbedder(32))


class World:
    """Two users of one store, and what they must have. A step changes the latter only when it has succeeded."""

    def __init__(self, folder: Path, meddler: Meddler) -> None:
        self.path = folder / "store.db"
        self.folder = folder
        self.meddler = meddler
        self.texts: dict[str, dict[str, str]] = {name: {} for name in USERS}
        self.images: dict[str, dict[str, bytes]] = {name: {} for name in USERS}
        self.files: dict[str, dict[str, bytes]] = {name: {} for name in USERS}
        self.entries: dict[str, set[str]] = {name: set() for name in USERS}
        self.prepared: Prepared | None = None
        self.errors: list[str] = []
        with open_store(self.path) as store:
            # So that both have rows of every kind, in two buckets, before anything is meddled with.
            for name in USERS:
                for number in range(3):
                    image = PNG + f"{name} {number}".encode() if number != 1 else None
                    memory = store.user(name).remember(
                        f"{name} says {number}", id=f"{number}", session="s0", image=image
                    )
                    self.texts[name][memory.id] = memory.text
                    if image is not None:
                        self.images[name][memory.id] = image
        with meddler.at_work():
            try:
                self.store = open_store(self.path)
            except MemlayerError as error:
                self.errors.append(f"open: {type(error).__name__}")
                self.store = None  # type: ignore[assignment]

    def run(self) -> None:
        """All steps, each looked at from outside."""
        if self.store is None:
            self.look("open")
            return
        for step in STEPS:
            applied = self.meddler.applied
            self.meddler.step = step.__name__
            if self._is_spared(step):
                continue
            try:
                with self.meddler.at_work():
                    change = step(self)
            except (StoreDamagedError, NotFoundError) as error:
                self.errors.append(f"{step.__name__}: {type(error).__name__}")
            else:
                if change is not None:
                    change()
            if self.meddler.applied > applied or step is STEPS[-1]:
                self.look(step.__name__)
        self.store.close()

    def _is_spared(self, step: Callable[[World], Any]) -> bool:
        """`verify` takes half a second and changes nothing: it is left out where it does not run the statement."""
        mutant = self.meddler.mutant
        return step is verifies and mutant is not None and step.__name__ not in self.meddler.seen[mutant.statement]

    def look(self, step: str) -> None:
        """What both users have, read by somebody who meddles with nothing."""
        with open_store(self.path) as clean:
            for name in USERS:
                found = {turn.id: turn.text for turn in clean.user(name).history(limit=1_000)}
                assert found == self.texts[name], f"{name} after {step}"
                assert _images(clean, name, found) == self.images[name], f"the images of {name} after {step}"
                files = clean.user(name).items(ItemKind.TOOL_FILE).read()
                assert files == self.files[name], f"the files of {name} after {step}"
                entries = clean.user(name).items(ItemKind.LEDGER).read().keys()
                assert entries == self.entries[name], f"the ledger of {name} after {step}"

    def has(self, name: str, found: dict[str, str]) -> None:
        """Asserts that a step's own answer is right."""
        assert found == self.texts[name], f"the answer to {name}"


def _remember(world: World, name: str, **arguments: Any) -> Callable[[], object]:
    memory = world.store.user(name).remember(f"{name} says {arguments}", **arguments)
    return lambda: world.texts[name].__setitem__(memory.id, memory.text)


def _images(store: MemoryStore, name: str, ids: Iterable[str]) -> dict[str, bytes]:
    found = {own_id: store.user(name).image(own_id) for own_id in ids}
    return {own_id: image for own_id, image in found.items() if image is not None}


def remembers_an_image(world: World) -> Any:
    image = PNG + b"a cat"
    memory = world.store.user("alice").remember("alice says cat", id="cat", image=image)

    def remembered() -> None:
        world.texts["alice"][memory.id] = memory.text
        world.images["alice"][memory.id] = image

    return remembered


def replaces_an_image(world: World) -> Any:
    image = PNG + b"another cat"
    memory = world.store.user("alice").remember("alice says cat", id="cat", image=image, replace=True)

    def replaced() -> None:
        world.texts["alice"][memory.id] = memory.text
        world.images["alice"][memory.id] = image

    return replaced


def replaces_by_what_has_no_image(world: World) -> Any:
    replaced = _remember(world, "bob", id="2", session="s0", replace=True)

    def bare() -> None:
        replaced()
        world.images["bob"].pop("2", None)

    return bare


def looks_at_images(world: World) -> None:
    for name in USERS:
        assert _images(world.store, name, world.texts[name]) == world.images[name]


def distils(world: World) -> Any:
    """One round of a model's, which reads the first conversation."""
    bob = world.store.user("bob")
    known = {fact.id for fact in bob.facts()}

    def model(messages: list[dict[str, str]]) -> str:
        (number,) = [number for number, text in turns(messages).items() if text == world.texts["bob"]["1"]]
        return json.dumps([{"fact": "bob says a fact", "sources": [number]}])

    assert Distiller(bob, model=model, batch=100).run(calls=1).facts == 1
    return lambda: world.texts["bob"].update({fact.id: fact.text for fact in bob.facts() if fact.id not in known})


def forgets_a_source(world: World) -> Any:
    """The fact goes with it."""
    assert world.store.user("bob").forget("1") == 1

    def gone() -> None:
        for memory_id, text in list(world.texts["bob"].items()):
            if memory_id == "1" or text == "bob says a fact":
                del world.texts["bob"][memory_id]

    return gone


def remembers(world: World) -> Any:
    return _remember(world, "alice")


def remembers_with_an_id(world: World) -> Any:
    return _remember(world, "bob", id="own")


def remembers_it_again(world: World) -> Any:
    return _remember(world, "bob", id="own")


def replaces(world: World) -> Any:
    return _remember(world, "alice", id="1", metadata={"n": 1}, replace=True)


def remembers_many(world: World) -> Any:
    turns = [Turn(text=f"bob says many things {number}", session="s2", id=f"many {number}") for number in range(3)]
    memories = world.store.user("bob").remember_many(turns)
    return lambda: world.texts["bob"].update({memory.id: memory.text for memory in memories})


def updates(world: World) -> Any:
    world.store.user("alice").update("0", metadata={"n": 2})


def updates_the_text(world: World) -> Any:
    memory = world.store.user("bob").update("0", text="bob says something else")
    return lambda: world.texts["bob"].update({"0": memory.text})


def recalls(world: World) -> None:
    for name in USERS:
        hits = world.store.user(name).recall("says", k=1_000)
        world.has(name, {hit.id: hit.text for hit in hits})


def lists(world: World) -> None:
    for name in USERS:
        user = world.store.user(name)
        world.has(name, {turn.id: turn.text for turn in user.history(limit=1_000)})
        assert user.count() == len(world.texts[name])
        assert all(session.id in ("s0", "s2") for session in user.sessions())


def gets(world: World) -> None:
    for name in USERS:
        assert world.store.user(name).get("2").text == world.texts[name]["2"]


def somebody_else_writes(world: World) -> None:
    """Another process, that nobody meddles with; what the first one answers afterwards is seen by the next steps."""
    world.meddler.active = False
    with open_store(world.path) as other:
        for name in USERS:
            memory = other.user(name).remember(f"{name} says it elsewhere", id="elsewhere")
            world.texts[name][memory.id] = memory.text


def recalls_what_somebody_else_wrote(world: World) -> None:
    recalls(world)


def forgets_by_id(world: World) -> Any:
    assert world.store.user("alice").forget("2") == 1
    return lambda: [had["alice"].pop("2", None) for had in (world.texts, world.images)]


def forgets_by_condition(world: World) -> Any:
    count = world.store.user("bob").forget(session="s2", where={"n": {"$exists": False}})
    assert count == sum(own_id.startswith("many") for own_id in world.texts["bob"])
    return lambda: [world.texts["bob"].pop(f"many {number}", None) for number in range(3)]


def exports_and_imports(world: World) -> Any:
    alice = world.store.user("alice")
    file = world.folder / "alice.export"
    file.unlink(missing_ok=True)
    exported = alice.export(file, passphrase=PASSPHRASE)
    assert exported == len(world.texts["alice"])
    assert alice.import_(file, passphrase=PASSPHRASE).kept == exported
    with open_store(world.folder / "elsewhere.db") as elsewhere:
        elsewhere.user("alice").import_(file, passphrase=PASSPHRASE)
        world.has("alice", {turn.id: turn.text for turn in elsewhere.user("alice").history(limit=1_000)})
        assert _images(elsewhere, "alice", world.texts["alice"]) == world.images["alice"]


def _change(world: World, name: str, files: dict[str, bytes]) -> Callable[[], object]:
    """Has a user's files changed to these."""
    with world.store.user(name).items(ItemKind.TOOL_FILE).change() as there:
        there.clear()
        there |= files
    return lambda: world.files.__setitem__(name, files)


def puts_items(world: World) -> Any:
    return _change(world, "alice", {"a": b"alice", "b": b"1", "c": b"2"})


def puts_items_of_the_same_names(world: World) -> Any:
    return _change(world, "bob", {"a": b"bob", "b": b"1", "c": b"2"})


def changes_and_drops_items(world: World) -> Any:
    return _change(world, "alice", {**world.files["alice"], "b": b"alice"} if world.files["alice"] else {"b": b"x"})


def drops_items(world: World) -> Any:
    return _change(world, "bob", {"a": b"bob"})


def reads_items(world: World) -> None:
    for name in USERS:
        assert world.store.user(name).items(ItemKind.TOOL_FILE).read() == world.files[name]


def somebody_else_changes_items(world: World) -> None:
    """Another process, that nobody meddles with; what the first one answers afterwards is seen by the next steps."""
    world.meddler.active = False
    with open_store(world.path) as other:
        for name in USERS:
            with other.user(name).items(ItemKind.TOOL_FILE).change() as there:
                there.pop("a", None)
                there["elsewhere"] = name.encode()
                world.files[name] = dict(there)


def _capture(world: World, name: str, prepared: Prepared, reply: str | None) -> Callable[[], object]:
    memories = world.store.user(name).capture(prepared, reply)
    assert prepared.key is not None
    key = prepared.key.hex()

    def captured() -> None:
        world.texts[name].update({memory.id: memory.text for memory in memories})
        world.entries[name].add(key)

    return captured


def _prepare(world: World, name: str, *, messages: int) -> Prepared:
    """A request with memory in it; of nobody else's."""
    said = [{"role": ("user", "assistant")[number % 2], "content": f"says {number}?"} for number in range(messages)]
    prepared = world.store.user(name).prepare(said, session="s0", k=1_000, max_tokens=100_000)
    other = next(user for user in USERS if user != name)
    sent = str(prepared.messages)
    assert not world.texts[name] or f"{name} says" in sent
    assert other not in sent
    return prepared


def converses(world: World) -> Any:
    return _capture(world, "alice", _prepare(world, "alice", messages=1), "alice hears an answer")


def converses_on(world: World) -> Any:
    return _capture(world, "alice", _prepare(world, "alice", messages=3), "alice hears another answer")


def asks(world: World) -> Any:
    """The same conversation as the other user's, up to a call of a tool."""
    world.prepared = None
    prepared = _prepare(world, "bob", messages=1)
    captured = _capture(world, "bob", prepared, None)
    world.prepared = prepared
    return captured


def is_answered(world: World) -> Any:
    if world.prepared is not None:  # what asked was no error
        return _capture(world, "bob", world.prepared, "bob hears an answer")
    return None


def counts_users(world: World) -> None:
    assert world.store.count_users() == sum(bool(texts) for texts in world.texts.values())


def changes_keys(world: World) -> None:
    slots = world.store.key_slots()
    world.store.remove_key(world.store.add_key(RawKey(b"k" * 32)))
    assert world.store.key_slots() == slots


def backs_up(world: World) -> None:
    copy = world.folder / "copy.db"
    copy.unlink(missing_ok=True)
    world.store.backup(copy)


def verifies(world: World) -> None:
    report = world.store.verify()
    assert report.memories == sum(map(len, world.texts.values()))


def changes_the_embedder(world: World) -> None:
    """There and back."""
    for embedder in (HashingEmbedder(48), HashingEmbedder(32)):
        assert world.store.reembed(embedder).memories == sum(map(len, world.texts.values()))
        recalls(world)


def erases(world: World) -> Any:
    assert world.store.user("alice").erase().memories == len(world.texts["alice"])

    def gone() -> None:
        world.texts["alice"].clear()
        world.images["alice"].clear()
        world.files["alice"] = {}
        world.entries["alice"] = set()

    return gone


def begins_anew(world: World) -> Any:
    return _remember(world, "alice", id="anew")


STEPS: list[Callable[[World], Any]] = [
    recalls, lists, gets, remembers, remembers_with_an_id, remembers_it_again, replaces, remembers_many, updates,
    remembers_an_image, replaces_an_image, replaces_by_what_has_no_image, looks_at_images,
    updates_the_text, distils, recalls, puts_items, puts_items_of_the_same_names, reads_items, changes_and_drops_items,
    drops_items, reads_items, converses, asks, converses_on, is_answered, somebody_else_changes_items, reads_items,
    somebody_else_writes, recalls_what_somebody_else_wrote, lists, forgets_by_id, forgets_by_condition,
    forgets_a_source, lists,
    exports_and_imports, reads_items, counts_users, changes_keys, backs_up, verifies,
    changes_the_embedder, erases, recalls, begins_anew,
    lists,
]  # fmt: skip
