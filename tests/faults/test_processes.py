"""One store, many processes and threads at once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memlayer import MemoryStore, RawKey
from memlayer.testing import HashingEmbedder
from tests.faults import crowd
from tests.faults.children import SCALE, Child, ChildError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROCESSES = 8
WRITES = 200 * SCALE
CREATORS = 20 * SCALE
ROUNDS = 200 * SCALE
SEED = 7


def test_eight_writers_at_once(tmp_path: Path, record_property) -> None:
    """Of 8 processes that write 200 turns each at once none is refused, and every turn is stored and recalled."""
    path = str(tmp_path / "store.db")
    crowd.open_store(path).close()
    with ExitStack() as stack:
        children = [
            stack.enter_context(Child(crowd.write_many, path=path, number=number, count=WRITES))
            for number in range(PROCESSES)
        ]
        assert [child.receive() for child in children] == ["ready"] * PROCESSES
        began = time.monotonic()
        for child in children:
            child.send("go")
        errors = [child.receive(patience=600.0) for child in children]
        record_property("seconds", round(time.monotonic() - began, 2))
        for child in children:
            child.finish()
    assert errors == [[]] * PROCESSES
    missed = []
    with crowd.open_store(path) as store:
        assert store.count_users() == PROCESSES + 1
        assert store.user(crowd.SHARED).count() == PROCESSES * WRITES // 2
        for number in range(PROCESSES):
            assert store.user(crowd.own_name(number)).count() == WRITES // 2
            for step in range(WRITES):
                user = store.user(crowd.SHARED if step % 2 else crowd.own_name(number))
                text = crowd.text(number, step)
                if text not in [hit.text for hit in user.recall(text, k=3)]:
                    missed.append(text)
        assert missed == []
        assert store.verify().memories == PROCESSES * WRITES


@pytest.mark.parametrize("key_file", [False, True], ids=["a key", "key files"])
def test_racing_creators(tmp_path: Path, key_file: bool) -> None:
    """Of two processes that make a store at one path at one moment both succeed, and both turns are in it."""
    keys = None if key_file else RawKey(crowd.KEY)
    with _two_creators(key_file=key_file) as create:
        for number in range(CREATORS if not key_file else 5):
            path = str(tmp_path / f"{number}.db")
            create(path)
            with crowd.open_store(path, keys=keys) as store:
                for user in (0, 1):
                    assert [turn.text for turn in store.user(crowd.own_name(user)).history()] == [crowd.text(user, 0)]
            assert len(list(tmp_path.iterdir())) == number + 1


def test_racing_creators_make_one_key_file(tmp_path: Path, home: Path) -> None:
    """For a store that two processes made at one moment there is one key file, not a second one that opens nothing."""
    with _two_creators(key_file=True) as create:
        for number in range(10):
            create(str(tmp_path / f"{number}.db"))
    assert len(list(home.rglob("*.key"))) == 10


@contextmanager
def _two_creators(*, key_file: bool) -> Iterator[Callable[[str], None]]:
    """A function with which two processes make a store at once."""
    with (
        Child(crowd.create, number=0, key_file=key_file) as one,
        Child(crowd.create, number=1, key_file=key_file) as other,
    ):
        assert [one.receive(), other.receive()] == ["ready", "ready"]

        def create(path: str) -> None:
            at = time.monotonic() + 0.01
            one.send([path, at])
            other.send([path, at])
            assert [one.receive(), other.receive()] == [None, None]

        yield create


def test_a_recall_sees_every_earlier_write(tmp_path: Path) -> None:
    """A recall that begins after another process's write was acknowledged sees it, and no longer what was forgotten."""
    path = str(tmp_path / "store.db")
    with Child(crowd.answer, path=path) as writer:
        writer.receive()
        with Child(crowd.answer, path=path) as reader:
            reader.receive()
            for number in range(ROUNDS):
                text = crowd.text(0, number)
                writer.send(["remember", text])
                memory_id = writer.receive()
                reader.send(["recall", text])
                assert reader.receive() == [text], f"round {number}"
                if number % 5 == 0:
                    writer.send(["forget", memory_id])
                    assert writer.receive() == 1
                    reader.send(["recall", text])
                    assert reader.receive() != [text], f"round {number}"


@pytest.mark.parametrize("cache_bytes", [512 * 1024 * 1024, 1], ids=["all users in RAM", "one user in RAM"])
def test_threads_share_a_store(tmp_path: Path, cache_bytes: int) -> None:
    """Eight threads that remember, recall, forget and list with one `MemoryStore` see no error and lose nothing."""
    store = MemoryStore.open(
        tmp_path / "store.db", keys=RawKey(crowd.KEY), embedder=HashingEmbedder(64), cache_bytes=cache_bytes
    )
    errors: list[str] = []
    kept: list[Counter[tuple[str, str]]] = [Counter() for _ in range(8)]
    start = threading.Barrier(8)

    def work(number: int) -> None:
        rng = random.Random(SEED * 100 + number)
        mine: dict[str, tuple[str, str]] = {}
        start.wait()
        try:
            for step in range(60 * SCALE):
                name = rng.choice([crowd.SHARED, crowd.own_name(number % 4)])
                user = store.user(name)
                text = crowd.text(number, step)
                mine[user.remember(text).id] = (name, text)
                if text not in [hit.text for hit in user.recall(text, k=3)]:
                    errors.append(f"{text} is not recalled")
                if text not in [turn.text for turn in user.history(limit=10_000)]:
                    errors.append(f"{text} is not in the history")
                if rng.random() < 0.3:
                    memory_id = rng.choice(list(mine))
                    name, _ = mine.pop(memory_id)
                    if store.user(name).forget(memory_id) != 1:
                        errors.append("forgotten by somebody else")
        except Exception as error:  # noqa: BLE001  whatever it is, the test wants to know
            errors.append(f"{type(error).__name__}: {error}")
        kept[number] = Counter(mine.values())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive(), "a thread hangs"
    try:
        assert errors == []
        found = Counter(
            (name, turn.text)
            for name in [crowd.SHARED, *(crowd.own_name(number) for number in range(4))]
            for turn in store.user(name).history(limit=10_000)
        )
        assert found == sum(kept, Counter())
        store.verify()
    finally:
        store.close()


def test_few_users_fit_in_ram(tmp_path: Path) -> None:
    """Of 20 users in a cache for about three, each is answered from its own memories, again and again."""
    budget = 500_000
    with MemoryStore.open(
        tmp_path / "store.db", keys=RawKey(crowd.KEY), embedder=HashingEmbedder(64), cache_bytes=budget
    ) as store:
        for number in range(20):
            for step in range(10):
                store.user(crowd.own_name(number)).remember(crowd.text(number, step))
        rng = random.Random(SEED)
        largest = 0
        for _ in range(500):
            number, step = rng.randrange(20), rng.randrange(10)
            hits = store.user(crowd.own_name(number)).recall(crowd.text(number, step), k=10)
            assert hits[0].text == crowd.text(number, step)
            assert {hit.text for hit in hits} <= {crowd.text(number, step) for step in range(10)}
            largest = max(largest, store._open_parts().residents.nbytes)
        # The budget, and the one user who is at work.
        assert 100_000 < largest < 2 * budget


@pytest.mark.parametrize("busy", [False, True], ids=["quiet", "busy"])
def test_a_child_of_a_fork_has_the_store_too(tmp_path: Path, busy: bool) -> None:
    """After a fork with an open store parent and child both write, the parent closes it, and nothing of either is lost.

    SQLite keeps its locks a process and a file; a child that inherits what SQLite believes about them must not go on
    without any.
    """
    path = str(tmp_path / "store.db")
    with Child(crowd.fork, path=path, busy=busy) as child:
        pid = child.receive()
        try:
            assert child.receive(patience=10.0) == 0
        except ChildError:
            os.kill(pid, signal.SIGKILL)  # It hangs; its parent, who waits for it, has not given its number away.
            raise
        child.finish()
    with crowd.open_store(path) as store:
        assert [turn.text for turn in store.user(crowd.own_name(1)).history()] == [crowd.text(1, n) for n in range(10)]
        assert [turn.text for turn in store.user(crowd.own_name(2)).history()] == [crowd.text(2, n) for n in range(20)]
        store.verify()
