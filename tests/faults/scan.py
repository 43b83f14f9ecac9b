"""What is looked for in files that must not hold it, in every form in which it could stand there.

A canary is a marker that stands at the head, in the middle and at the end of a text, or is one of a user id, a session,
a key of metadata. A vector is looked for by windows of 16 bytes, at every place of the file: a part of one is enough.
"""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from memlayer import MemoryStore, RawKey, Turn
from memlayer.items import ItemKind
from memlayer.ledger import Entry
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from memlayer.memory import UserMemory
    from tests.faults.children import Link

MARKERS = {
    "text": "Txq7canaryWm",
    "updated text": "Upd4canaryHq",
    "session": "Sbn3canaryRv",
    "speaker": "Kpw5canaryZd",
    "metadata key": "Mjt9canaryLc",
    "metadata value": "Vhg2canaryXn",
    "own id": "Ofy6canaryBs",
    "user id": "Udk8canaryGw",
    "item name": "Inr6canaryTp",
    "item": "Icz4canaryKv",
    "question": "Qwj7canaryNs",
    "reply": "Rtb5canaryDf",
}
USERS = (f"alice {MARKERS['user id']}", f"bob {MARKERS['user id']}")
EXPORT_PASSPHRASE = "the passphrase of an export"

WINDOW = 16


# --- Forms ---


def forms(marker: str) -> dict[str, bytes]:
    """How the marker's characters would look in a file, by the name of the encoding."""
    plain = marker.encode()
    found = {
        "UTF-8": plain,
        "UTF-16LE": marker.encode("utf-16-le"),
        "UTF-16BE": marker.encode("utf-16-be"),
        "hex": plain.hex().encode(),
        "HEX": plain.hex().upper().encode(),
    }
    for shift in range(3):
        # The digits that depend on the marker alone, wherever in a longer text it begins.
        digits = slice(-(-8 * shift // 6), 8 * (shift + len(plain)) // 6)
        found[f"base64+{shift}"] = base64.b64encode(bytes(shift) + plain)[digits]
        found[f"base64url+{shift}"] = base64.urlsafe_b64encode(bytes(shift) + plain)[digits]
    return found


def vector_forms(vectors: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """The vectors as a file could hold them, one row each, by the name of the number type."""
    return {
        "float32": vectors.astype("<f4"),
        "float16": vectors.astype("<f2"),
        "int8": np.round(vectors * 127).astype("i1"),
    }


def windows(array: NDArray[Any]) -> set[bytes]:
    """All runs of 16 bytes in the rows, from every number on; but for those that are nearly all zeros, as an empty page
    of a file is."""
    found = set()
    for row in array:
        raw = row.tobytes()
        for start in range(0, len(raw) - WINDOW + 1, array.itemsize):
            window = raw[start : start + WINDOW]
            if window[:8].count(0) <= 4 and window.count(0) <= 8:
                found.add(window)
    return found


def pieces(sealed: bytes) -> set[bytes]:
    """The runs of 16 bytes that a sealed field is made of, behind its header."""
    return {sealed[start : start + WINDOW] for start in range(6, len(sealed) - WINDOW + 1, WINDOW)}


# --- Looking ---


class Search:
    """Many thousands of byte strings, looked for at every place at once.

    A class because the table in front of the slow look-up, by the first 8 bytes of each, is made once.

    Args:
        wanted: by the bytes, at least 8 and the first 8 not all zeros, what they are called.
    """

    _BITS = 22

    def __init__(self, wanted: Mapping[bytes, str]) -> None:
        self._wanted: dict[bytes, list[tuple[bytes, str]]] = {}
        for pattern, name in wanted.items():
            self._wanted.setdefault(pattern[:8], []).append((pattern, name))
        self._table = np.zeros(1 << self._BITS, dtype=bool)
        self._table[self._slots(np.frombuffer(b"".join(self._wanted), dtype="<u8"))] = True

    def find(self, data: bytes) -> list[tuple[int, str]]:
        """Where which of them stands in `data`."""
        found = []
        for shift in range(min(8, len(data))):
            heads = np.frombuffer(data, dtype="<u8", offset=shift, count=(len(data) - shift) // 8)
            # Empty pages are not worth a look, whatever they share a slot with.
            for number in np.flatnonzero(self._table[self._slots(heads)] & (heads != 0)).tolist():
                at = shift + 8 * number
                for pattern, name in self._wanted.get(data[at : at + 8], ()):
                    if data.startswith(pattern, at):
                        found.append((at, name))
        return found

    def _slots(self, heads: NDArray[np.uint64]) -> NDArray[np.uint64]:
        mixed: NDArray[np.uint64] = heads * np.uint64(0x9E3779B97F4A7C15)
        return mixed >> np.uint64(64 - self._BITS)


def secrets(vectors: NDArray[np.float32]) -> Search:
    """Everything that no file may hold: the markers in all their forms, and vectors in all of theirs."""
    wanted = {
        pattern: f"{name} as {form}" for name, marker in MARKERS.items() for form, pattern in forms(marker).items()
    }
    # Every entry of the ledger has these in it.
    for said in ("true", "false"):
        wanted |= {part.encode(): "a part of an entry" for part in (f'"d":{said},"m":["', f'],"s":{said},"t":"')}
    for form, array in vector_forms(vectors).items():
        wanted |= dict.fromkeys(windows(array), f"a vector as {form}")
    return Search(wanted)


def entries(told: Mapping[str, str]) -> Search:
    """What no file may hold of these entries of the ledger, by their names: their keys, their turns, and the ids of
    memories as they are spelled there. (As 16 bytes those stand in clear in their own rows.)"""
    wanted = {name.encode(): "the name of an entry" for name in told}
    wanted |= {bytes.fromhex(name): "the key of an entry" for name in told}
    for content in told.values():
        entry = Entry.from_json(content.encode())
        wanted[entry.turn] = "the turn of an entry"
        wanted |= {own_id.hex().encode(): "an id in an entry" for own_id in (entry.turn, *entry.memory_ids)}
    return Search(wanted)


def files_of(pid: int, *folders: Path) -> Iterator[tuple[str, bytes]]:
    """Every file in these folders, and every plain file that the process has open for writing, deleted ones too."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield from _content(path, name=str(path))
    descriptors = Path(f"/proc/{pid}/fd")
    if not descriptors.is_dir():
        return
    for descriptor in descriptors.iterdir():
        try:
            if descriptor.is_file() and not descriptor.readlink().is_relative_to("/proc"):
                yield from _content(descriptor, name=f"{descriptor} -> {descriptor.readlink()}")
        except OSError:
            continue  # It was closed meanwhile.


def _content(path: Path, *, name: str) -> Iterator[tuple[str, bytes]]:
    try:
        yield name, path.read_bytes()
    except FileNotFoundError:
        pass  # A draft that has become a file of another name meanwhile, or is gone.


# --- Writing ---


def text(number: int) -> str:
    """The text of one turn: long enough that its vector is no row of zeros."""
    words = random.Random(number).choices(_WORDS, k=160)
    marker = MARKERS["text"]
    return f"{marker} turn {number} {' '.join(words[:80])} {marker} {' '.join(words[80:])} {marker}"


_WORDS = [f"word{number}" for number in range(400)]


def turn(number: int) -> Turn:
    """One turn with everything that a turn can have."""
    return Turn(
        text=text(number),
        role="user" if number % 2 else "assistant",
        speaker=f"{MARKERS['speaker']} {number % 5}",
        session=f"{MARKERS['session']} {number // 40}",
        metadata={f"{MARKERS['metadata key']} a": f"{MARKERS['metadata value']} {number}", "n": number},
        id=f"{MARKERS['own id']} {number}" if number % 3 else None,
    )


def write_turns(link: Link, *, folder: str, count: int) -> None:
    """Writes `count` turns by two users, then changes, forgets, exports, copies and erases; says so before and after.

    The store is in `folder`, its key file in the home folder.
    """
    path = Path(folder)
    with MemoryStore.open(path / "store.db", embedder=HashingEmbedder(64)) as store:
        users = [store.user(name) for name in USERS]
        ids: list[list[str]] = [[], []]
        for start in range(0, count, 20):
            numbers = range(start, start + 20)
            for number in numbers[:10]:
                ids[number % 2].append(users[number % 2].remember_many([turn(number)])[0].id)
            for user in (0, 1):
                batch = [turn(number) for number in numbers[10:] if number % 2 == user]
                ids[user] += [memory.id for memory in users[user].remember_many(batch)]
            for number in (start, start + 1):
                change_items(users[number % 2], number)
                converse(users[number % 2], number)
            link.send({"written": start + 20})
        rng = random.Random(1)
        for user in (0, 1):
            for chosen in rng.sample(ids[user], count // 40):
                users[user].update(chosen, text=f"{MARKERS['updated text']} {' '.join(rng.choices(_WORDS, k=40))}")
            users[user].recall(text(0), k=50, where={"n": {"$gte": 10}})
        users[0].export(path / "alice.export", passphrase=EXPORT_PASSPHRASE)
        store.backup(path / "backup.db")
        ledgers = [user.items(ItemKind.LEDGER).read() for user in users]
        link.send({"entries": {name: content.decode() for ledger in ledgers for name, content in ledger.items()}})
        _pause(link, "before forget")
        # Scattered ones, so that their neighbours stay, and a whole session.
        forgotten = sum(users[0].forget(chosen) for chosen in rng.sample(ids[0], count // 20))
        forgotten += users[1].forget(session=f"{MARKERS['session']} 3")
        link.send({"forgotten": forgotten})
        _pause(link, "after forget")
        items = sum(len(users[1].items(kind).read()) for kind in ItemKind if kind is not ItemKind.IMAGE)
        receipt = users[1].erase()
        link.send({"erased": receipt.memories, "erased items": items, "files clean": receipt.files_clean})
        _pause(link, "after erase")


def change_items(user: UserMemory, number: int) -> None:
    """Puts some, changes one and drops one, of two kinds."""
    for kind in (ItemKind.TOOL_FILE, ItemKind.FRAMEWORK):
        with user.items(kind).change() as items:
            items[f"{MARKERS['item name']} {number}"] = f"{MARKERS['item']} {number} ".encode() * (number % 9 + 1)
            items[f"{MARKERS['item name']} of all"] = f"{MARKERS['item']} of turn {number}".encode()
            items.pop(f"{MARKERS['item name']} {number - 60}", None)


def converse(user: UserMemory, number: int) -> None:
    """A question with what memory has for it, and its answer: an entry in the ledger."""
    question = f"{MARKERS['question']} {number}: {text(number)[:200]}"
    session = f"{MARKERS['session']} of questions"
    prepared = user.prepare([{"role": "user", "content": question}], session=session)
    assert prepared.block
    user.capture(prepared, None)
    user.capture(prepared, f"{MARKERS['reply']} {number}")


CHURN_SEED = 2
CHURN_STEPS = 120


def churn(link: Link, *, path: str) -> None:
    """Remembers texts of very different lengths and forgets some of them, one at a time, with a pause around each; at
    last it erases the user."""
    rng = random.Random(CHURN_SEED)
    with MemoryStore.open(path, keys=RawKey(bytes(32)), embedder=HashingEmbedder(16)) as store:
        user, ids = store.user("alice"), list[str]()
        for _ in range(CHURN_STEPS):
            if rng.random() < 0.5 or not ids:
                texts = ["x" * int(2 ** rng.uniform(1, 14)) for _ in range(rng.randrange(1, 6))]
                ids += [memory.id for memory in user.remember_many([Turn(text=text) for text in texts])]
            else:
                chosen = ids.pop(rng.randrange(len(ids)))
                _pause(link, chosen)
                user.forget(chosen)
                _pause(link, "forgotten")
        _pause(link, "erase")
        assert user.erase().files_clean
        _pause(link, "erased")


def _pause(link: Link, where: str) -> None:
    link.send(where)
    link.receive()
