"""What the processes of `test_processes` do: write at once, make one store at once, write and recall in turns, fork."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from memlayer import MemoryStore, RawKey
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    from memlayer import KeySource
    from tests.faults.children import Link

KEY = bytes(range(32))
SHARED = "everybody"


_RAW = RawKey(KEY)


def open_store(path: str, *, keys: KeySource | None = _RAW) -> MemoryStore:
    """The store under test."""
    return MemoryStore.open(path, keys=keys, embedder=HashingEmbedder(256))


def own_name(number: int) -> str:
    """The user that only one process writes to."""
    return f"user of process {number}"


def text(number: int, step: int) -> str:
    """What a process writes in one step; no two of them share a word."""
    return f"p{number}s{step}a p{number}s{step}b p{number}s{step}c"


def write_many(link: Link, *, path: str, number: int, count: int) -> None:
    """Writes in turns to the user of everybody and to its own; sends the errors, which there must be none of."""
    with open_store(path) as store:
        link.send("ready")
        link.receive()
        errors = []
        for step in range(count):
            name = SHARED if step % 2 else own_name(number)
            try:
                store.user(name).remember(text(number, step))
            except Exception as error:  # noqa: BLE001  whatever it is, the test wants to know
                errors.append(f"{type(error).__name__}: {error}")
    link.send(errors)


def create(link: Link, *, number: int, key_file: bool) -> None:
    """Opens each store that it is told of at the moment that it is told, writes a turn and says what came of it.

    Args:
        number: of this process.
        key_file: with the default key file of each store, not with the key of this test.
    """
    link.send("ready")
    while True:
        try:
            path, at = link.receive()
        except EOFError:
            return
        while time.monotonic() < at:
            pass
        try:
            with open_store(path, keys=None if key_file else RawKey(KEY)) as store:
                store.user(own_name(number)).remember(text(number, 0))
        except Exception as error:  # noqa: BLE001  whatever it is, the test wants to know
            link.send(f"{type(error).__name__}: {error}")
        else:
            link.send(None)


def answer(link: Link, *, path: str) -> None:
    """Remembers, or recalls, what it is told to."""
    with open_store(path) as store:
        user = store.user(SHARED)
        link.send("ready")
        while True:
            try:
                kind, said = link.receive()
            except EOFError:
                return
            if kind == "remember":
                link.send(user.remember(said).id)
            elif kind == "forget":
                link.send(user.forget(said))
            else:
                link.send([hit.text for hit in user.recall(said, k=1)])


def fork(link: Link, *, path: str, busy: bool) -> None:
    """Forks with the store open; parent and child write, and the parent closes the store while the child goes on.

    Args:
        busy: threads of the parent are writing and recalling at the moment of the fork.
    """
    store = open_store(path)
    store.user(SHARED).remember(text(0, 0))
    done = threading.Event()
    threads = [threading.Thread(target=_keep_busy, args=(store, number, done)) for number in range(3 if busy else 0)]
    for thread in threads:
        thread.start()
    if busy:
        time.sleep(0.05)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _after_fork(store, reading)
    link.send(pid)
    for step in range(10):
        store.user(own_name(1)).remember(text(1, step))
    done.set()
    for thread in threads:
        thread.join()
    store.close()
    os.write(writing, b"the parent has closed the store")
    link.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _keep_busy(store: MemoryStore, number: int, done: threading.Event) -> None:
    user = store.user(f"thread {number}")
    step = 0
    while not done.is_set():
        user.remember(f"turn {step}")
        user.recall("turn")
        step += 1


def _after_fork(store: MemoryStore, reading: int) -> None:
    code = 1
    try:
        # The index and the connections of the parent are not its own; what the parent wrote is there all the same.
        seen = [hit.text for hit in store.user(SHARED).recall(text(0, 0), k=1)] == [text(0, 0)]
        user = store.user(own_name(2))
        for step in range(10):
            user.remember(text(2, step))
        os.read(reading, 100)
        for step in range(10, 20):
            user.remember(text(2, step))
        store.close()
        code = 0 if seen else 3
    finally:
        os._exit(code)
