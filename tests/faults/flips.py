"""Damage to a store's files, one bit or one cut at a time, and what the product makes of it.

Three ways in: the storage layer read-only with a raw key (`flip_storage`, the cheap one, for hundreds of thousands),
the public `MemoryStore.open` with the rollback guard (`damage_public`), and SQLite's log of a store that was not closed
(the same, aimed at that file). What is read is compared with the original down to the vectors' bytes.
"""

from __future__ import annotations

import gc
import mmap
import os
import signal
import struct
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayer import MemlayerError, MemoryStore, RawKey, opening
from memlayer.database import Database
from memlayer.items import ItemKind, named
from memlayer.sealer import OpenedItem
from memlayer.testing import HashingEmbedder
from memlayer.vault import Vault

if TYPE_CHECKING:
    from tests.faults.children import Link

KEY = bytes(range(32))
USERS = ("alice", "bob")
EMBEDDER = HashingEmbedder(16)

IDENTICAL = "identical"
SILENT = "SILENT CHANGE"


def make_store(path: Path) -> None:
    """A small store of two users: short texts, a long one, metadata, own ids, sessions, updates, a forgotten one."""
    with MemoryStore.open(path, keys=RawKey(KEY), embedder=EMBEDDER) as store:
        fill(store)


def make_crashed_store(link: Link, *, path: str) -> None:
    """The same, by a process that dies with the store open: what was written last is in SQLite's log alone."""
    store = MemoryStore.open(path, keys=RawKey(KEY), embedder=EMBEDDER)
    fill(store)
    for number in range(10):
        store.user(USERS[number % 2]).remember(f"the last words, number {number}", id=f"last {number}")
    link.send("written")
    os.kill(os.getpid(), signal.SIGKILL)


def fill(store: MemoryStore) -> None:
    """What `make_store` puts in."""
    for name in USERS:
        user = store.user(name)
        user.remember(f"{name} likes tea", session="s1", speaker=name, metadata={"n": 1, "tag": "x"}, id="first")
        gone = user.remember(f"{name} said something to be forgotten")
        user.remember(f"{name} likes milk", session="s2", role="assistant", id="second")
        user.update("second", metadata={"n": 2, "deep": {"list": [1, 2.5, None, True]}})
        user.forget(gone.id)
        user.remember(f"{name} showed a picture", image=f"GIF89a of {name}".encode(), id="shown")
        with user.items(ItemKind.TOOL_FILE).change() as items:
            items |= {"notes": f"{name} has notes".encode(), "empty": b"", "gone": b"what is to go"}
        with user.items(ItemKind.FRAMEWORK).change() as items:
            items["notes"] = f"{name} has other notes".encode()
        with user.items(ItemKind.TOOL_FILE).change() as items:
            items["notes"] += b", and more of them"
            del items["gone"]
    store.user("alice").remember("a long text, over several pages of the file: " + "words and words and " * 800)


def _shown(item: OpenedItem) -> tuple[Any, ...]:
    """What an item is; an image shows with its memory."""
    return (item.kind, item.item_id) if item.kind == ItemKind.IMAGE else (item.kind, *named(item))


class StorageReader:
    """Reads all that a store holds through the storage layer, with a new connection each time.

    The engine is made once, because making one costs as much as all the rest; it holds compiled SQL and no byte of the
    file. The checks are the product's own, in the order of `MemoryStore.open` and of a first recall.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, mode="ro")
        self._key = RawKey(KEY)

    def read(self, *, streamed: bool) -> list[Any]:
        """Everything; `streamed` is the way of `verify` and `export`, otherwise that of a recall."""
        try:
            keys, slot_id = opening._unlock(self._database, self._key)
            vault = Vault(self._database, keys=keys, guard=None)
            with self._database.read() as connection:
                found: list[Any] = [slot_id, vault.read_embedders(connection), vault.directory.check(connection)]
                for name in USERS:
                    user = vault.unlock(connection, name)
                    if user is None:
                        found.append(None)
                        continue
                    records = list(
                        vault.stream(connection, user) if streamed else vault.read(connection, user, after=0)
                    )
                    items = vault.read_items(connection, user, after=0)
                    # What `stream` and the index of a recall do at their end.
                    total = sum(record.element for record in records) + sum(item.element for item in items)
                    if not user.manifest.holds(records=len(records), items=len(items), total=total):
                        vault.refuse_rows()
                    found.append(sorted(_shown(item) for item in items))
                    found.append(
                        [
                            (
                                record.memory_id,
                                record.seq,
                                record.memory,
                                record.own_id,
                                record.vectors.tobytes(),
                                vault.image(connection, user, record),
                            )
                            for record in sorted(records, key=lambda record: record.seq)
                        ]
                    )
            return found
        finally:
            assert self._database._engine is not None
            self._database._engine.dispose()


def flip_storage(link: Link, *, path: str, positions: list[int], progress: str) -> None:
    """Flips the bits at `range(*positions)`, one at a time; sends how often what came of it.

    Args:
        path: a file of this process alone.
        positions: of the bits: start, stop, and both parts of the step, `numerator / denominator`.
        progress: a file that gets the number of the bit at work, for whoever finds this process dead.
    """
    first, count, of, bits = positions
    expected = StorageReader(Path(path)).read(streamed=True)
    reader = StorageReader(Path(path))
    outcomes: Counter[str] = Counter()
    gc.collect()
    gc.freeze()
    file = os.open(path, os.O_RDWR)
    with open(progress, "r+b") as handle, mmap.mmap(handle.fileno(), 8) as at_work:
        for number in range(first, count, of):
            bit = number * bits // count
            at_work[:8] = struct.pack("<Q", bit)
            was = os.pread(file, 1, bit >> 3)
            os.pwrite(file, bytes([was[0] ^ 1 << (bit & 7)]), bit >> 3)
            outcome = _outcome(reader, expected, streamed=number & 14 == 0)
            os.pwrite(file, was, bit >> 3)
            outcomes[outcome] += 1
            if not _is_fine(outcome):
                link.send({"bit": bit, "outcome": outcome})
            if sum(outcomes.values()) % 2_000 == 0:
                link.send(None)  # still alive
    link.send(dict(outcomes))
    assert _outcome(reader, expected, streamed=True) == IDENTICAL


def _outcome(reader: StorageReader, expected: list[Any], *, streamed: bool) -> str:
    try:
        return IDENTICAL if reader.read(streamed=streamed) == expected else SILENT
    except MemlayerError as error:
        return type(error).__name__
    except Exception as error:  # noqa: BLE001  this is what is looked for
        return f"RAW {type(error).__module__}.{type(error).__name__}"


def _is_fine(outcome: str) -> bool:
    return outcome != SILENT and not outcome.startswith("RAW ")


class Image:
    """A store's files and its guard's, as bytes: put back before each damage."""

    def __init__(self, path: Path, state: Path) -> None:
        self.path = path
        paths = [path, path.with_name(f"{path.name}-wal"), *state.rglob("*.guard")]
        self.files = {file: file.read_bytes() for file in paths if file.exists()}

    def put_back(self) -> None:
        """Makes the files what they were, and removes what came since."""
        for suffix in ("", "-wal", "-shm", "-journal"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        for file, content in self.files.items():
            file.write_bytes(content)

    def damage(self, kind: str, suffix: str, place: int) -> None:
        """One flipped bit, or everything from a byte on cut off, in the main file or the one with this suffix."""
        file = self.path.with_name(self.path.name + suffix)
        if kind == "cut":
            os.truncate(file, place)
            return
        content = bytearray(file.read_bytes())
        content[place >> 3] ^= 1 << (place & 7)
        file.write_bytes(content)


def read_public(path: Path) -> list[Any]:
    """Everything that the public names give, the scores of every text against every other included."""
    with MemoryStore.open(path, keys=RawKey(KEY), embedder=EMBEDDER) as store:
        found: list[Any] = [store.count_users()]
        for name in USERS:
            user = store.user(name)
            turns = list(user.history(limit=1_000))
            recalled = [[(hit.id, hit.score) for hit in user.recall(turn.text, k=1_000)] for turn in turns]
            images = [user.image(turn.id) for turn in turns]
            items = [user.items(kind).read() for kind in ItemKind if kind != ItemKind.IMAGE]
            found.append([turns, recalled, user.sessions(), user.count(), images, items])
        return found


def damage_public(link: Link, *, path: str, state: str, damages: list[list[Any]]) -> None:
    """Does each damage to a store's files, opens it by its public name and reads; sends how often what came of it."""
    image = Image(Path(path), Path(state))
    expected = read_public(Path(path))
    outcomes: Counter[str] = Counter()
    for damage in damages:
        image.put_back()
        image.damage(*damage)
        link.send(damage)  # the last one of a process that dies
        try:
            outcome = IDENTICAL if read_public(Path(path)) == expected else SILENT
        except MemlayerError as error:
            outcome = type(error).__name__
        except Exception as error:  # noqa: BLE001  this is what is looked for
            outcome = f"RAW {type(error).__module__}.{type(error).__name__}"
        outcomes[outcome] += 1
        if not _is_fine(outcome):
            link.send({"damage": damage, "outcome": outcome})
    image.put_back()
    assert read_public(Path(path)) == expected
    link.send(dict(outcomes))
