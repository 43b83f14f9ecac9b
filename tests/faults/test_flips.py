"""Damaged files: the same content or a typed error, never something else, a crash, or an error of a library below."""

from __future__ import annotations

import os
import shutil
import struct
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlcipher3 import dbapi2

from memlayer import MemoryStore, RawKey, StoreDamagedError
from memlayer.items import ItemKind
from tests.faults import flips
from tests.faults.children import SCALE, Child, ChildError

if TYPE_CHECKING:
    from collections.abc import Iterator

FLIPS = 160_000 * SCALE
WORKERS = 2
PUBLIC = 200 * SCALE

RAM = Path("/dev/shm")


@pytest.fixture
def fast(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder in RAM where there is one: what is tested here is what is read, not what the disk does."""
    if not os.access(RAM, os.W_OK):
        yield tmp_path
        return
    folder = RAM / f"memlayer-{os.getpid()}-{request.node.name[:40]}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def _report(outcomes: dict[str, int], record: Any) -> None:
    for outcome, count in sorted(outcomes.items(), key=lambda pair: -pair[1]):
        print(f"{count:8,} {outcome}")
        record(outcome, count)


def test_every_flip_is_noticed_or_changes_nothing(fast: Path, record_property) -> None:
    """Of 160,000 single-bit flips spread evenly over a two-user store, none changes what is read without an error."""
    store = fast / "store.db"
    flips.make_store(store)
    bits = store.stat().st_size * 8
    count = min(FLIPS, bits)
    workers = []
    for number in range(WORKERS):
        copy, progress = fast / f"{number}.db", fast / f"{number}.at"
        shutil.copyfile(store, copy)
        progress.write_bytes(bytes(8))
        positions = [number, count, WORKERS, bits]
        workers.append(
            (Child(flips.flip_storage, path=str(copy), positions=positions, progress=str(progress)), progress)
        )
    outcomes: Counter[str] = Counter()
    faults: list[Any] = []
    for child, progress in workers:
        with child:
            try:
                *messages, counted = child.finish()
            except ChildError as error:
                (bit,) = struct.unpack("<Q", progress.read_bytes())
                faults.append(f"{error}, at bit {bit}")
                continue
            outcomes.update(counted)
            faults += [message for message in messages if message is not None]
    _report(outcomes, record_property)
    assert faults == []
    assert sum(outcomes.values()) == count
    # Both happened, so both would have been seen.
    assert outcomes[flips.IDENTICAL] > 0
    assert outcomes["StoreDamagedError"] > 0


def test_flipping_can_see_a_silent_change(fast: Path) -> None:
    """The comparison of the flips tells a store whose owner changed one metadata value from what it was."""
    store = fast / "store.db"
    flips.make_store(store)
    before = flips.StorageReader(store).read(streamed=True)
    assert flips.StorageReader(store).read(streamed=False) == before
    with MemoryStore.open(store, keys=RawKey(flips.KEY), embedder=flips.EMBEDDER) as opened:
        opened.user("bob").update("first", metadata={"n": 2, "tag": "x"})
    reader = flips.StorageReader(store)
    assert flips._outcome(reader, before, streamed=True) == flips.SILENT
    assert flips._outcome(reader, before, streamed=False) == flips.SILENT


def test_flipping_can_see_a_silent_change_of_an_item(fast: Path) -> None:
    """Nor is a store whose owner changed one byte of one item taken for what it was, from the inside or by the door."""
    store = fast / "store.db"
    flips.make_store(store)
    reader = flips.StorageReader(store)
    before, public = reader.read(streamed=True), flips.read_public(store)
    with (
        MemoryStore.open(store, keys=RawKey(flips.KEY), embedder=flips.EMBEDDER) as opened,
        opened.user("bob").items(ItemKind.FRAMEWORK).change() as items,
    ):
        items["notes"] = items["notes"][:-1] + b"z"
    assert flips._outcome(reader, before, streamed=True) == flips.SILENT
    assert flips._outcome(reader, before, streamed=False) == flips.SILENT
    assert flips.read_public(store) != public


@pytest.mark.parametrize("target", ["records.text", "records.vector", "items.sealed"])
def test_flipping_reaches_what_is_sealed(fast: Path, target: str) -> None:
    """A flip inside of a sealed field is an error that says that the field does not authenticate."""
    store = fast / "store.db"
    flips.make_store(store)
    connection = dbapi2.connect(str(store))
    (sealed,) = connection.execute(f"SELECT {target} FROM {target.partition('.')[0]} LIMIT 1").fetchone()
    connection.close()
    content = bytearray(store.read_bytes())
    at = content.find(sealed[20:60])
    assert at > 0
    content[at] ^= 1
    store.write_bytes(content)
    with pytest.raises(StoreDamagedError):
        flips.StorageReader(store).read(streamed=True)


def _damage(child: Child, record: Any) -> Counter[str]:
    with child:
        try:
            *messages, counted = child.finish()
        except ChildError as error:
            pytest.fail(str(error))
    assert [message for message in messages if isinstance(message, dict)] == []
    _report(counted, record)
    return Counter(counted)


def _spread(count: int, end: int) -> list[int]:
    return [number * end // count for number in range(count)]


def test_flips_through_the_front_door(fast: Path, home: Path, record_property) -> None:
    """A store with a flipped bit gives the same answers or a typed error by its public names, guard included."""
    store = fast / "store.db"
    flips.make_store(store)
    damages = [("flip", "", bit) for bit in _spread(PUBLIC, store.stat().st_size * 8)]
    outcomes = _damage(Child(flips.damage_public, path=str(store), state=str(home), damages=damages), record_property)
    assert sum(outcomes.values()) == PUBLIC
    assert len(outcomes) > 1


def test_cuts_through_the_front_door(fast: Path, home: Path, record_property) -> None:
    """A store that lost its end, wherever it was cut, is a typed error."""
    store = fast / "store.db"
    flips.make_store(store)
    damages = [("cut", "", size) for size in _spread(PUBLIC // 2, store.stat().st_size)]
    outcomes = _damage(Child(flips.damage_public, path=str(store), state=str(home), damages=damages), record_property)
    assert outcomes[flips.IDENTICAL] == 0


@pytest.mark.parametrize("kind", ["flip", "cut"])
def test_a_damaged_log_is_a_rollback(fast: Path, home: Path, kind: str, record_property) -> None:
    """SQLite drops a damaged log from the damage on, which is an older store; the guard sees each of them."""
    store = fast / "store.db"
    with Child(flips.make_crashed_store, path=str(store)) as child:
        assert child.receive() == "written"
        child.kill()
    size = store.with_name("store.db-wal").stat().st_size
    places = _spread(PUBLIC, size * 8) if kind == "flip" else _spread(PUBLIC // 2, size)
    damages = [(kind, "-wal", place) for place in places]
    outcomes = _damage(Child(flips.damage_public, path=str(store), state=str(home), damages=damages), record_property)
    assert outcomes["RollbackDetectedError"] > 0
