"""A writer that is killed in the middle, over and over, and what it had been told was stored.

Each writer is a fork of one warm process that never has a store open itself: a start costs milliseconds. It says what
it is about to do and, when the call has returned, that it is done. What was acknowledged must hold; of the one call
that was cut off, all or nothing.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlayer import MemoryStore, RawKey, Turn
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    from collections.abc import Callable

    from memlayer.memory import UserMemory
    from tests.faults.children import Link

KEY = bytes(range(32))
USERS = ("alice", "bob", "carol")


def open_store(path: str) -> MemoryStore:
    """The store under test."""
    return MemoryStore.open(path, keys=RawKey(KEY), embedder=HashingEmbedder(32))


def nursery(link: Link, *, warm: str) -> None:
    """Forks the processes that the test asks for, one at a time: `["write", path, seed]`, to be killed at a random
    moment, or `["look", path]`. Sends the return code and what the process said. Ends when the link does.

    Args:
        warm: for a store that is opened and closed once, so that the forks have nothing left to import.
    """
    with open_store(warm) as store:
        store.user(USERS[0]).remember(text("1"))
        store.user(USERS[0]).history()
    while True:
        try:
            order, *arguments = link.receive()
        except EOFError:
            return
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _in_child(_look if order == "look" else _write, writing, arguments)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = b""
            if order == "write":
                said = b"".join(iter(pipe.readline, b"*\n"))
                _kill(pid, random.Random(arguments[1]))
            said += pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        link.send([code, said.decode()])


def _in_child(work: Callable[..., None], writing: int, arguments: list[Any]) -> None:
    code = 1
    try:
        work(writing, *arguments)
        code = 0
    except BaseException as error:  # noqa: BLE001  the test reads it; nothing of the parent's may run on in here
        os.write(writing, f"! {type(error).__name__}: {error}\n{traceback.format_exc()}\n*\n".encode())
    finally:
        os._exit(code)


def _kill(pid: int, rng: random.Random) -> None:
    """Sends SIGKILL 0.5 to 30 ms after the child's first write."""
    time.sleep(rng.uniform(0.0005, 0.030))
    os.kill(pid, signal.SIGKILL)


def digest(text: str) -> str:
    """What stands for a text in what a process says."""
    return sha256(text.encode()).hexdigest()


def _say_what_is_there(writing: int, store: MemoryStore) -> dict[str, list[str]]:
    """A line for each memory; the ids, by user."""
    ids = {}
    with os.fdopen(os.dup(writing), "w") as out:
        for name in USERS:
            turns = store.user(name).history(limit=10_000)
            ids[name] = [turn.id for turn in turns]
            out.writelines(f"#\t{name}\t{turn.id}\t{digest(turn.text)}\n" for turn in turns)
    return ids


def _look(writing: int, path: str) -> None:
    with open_store(path) as store:
        store.verify()
        _say_what_is_there(writing, store)


# --- The writer ---


def _write(writing: int, path: str, seed: int) -> None:
    rng = random.Random(seed)
    store = open_store(path)
    users = {name: store.user(name) for name in USERS}
    known = _say_what_is_there(writing, store)
    for step in range(10_000):  # It never comes so far.
        name = rng.choice(USERS)
        operation = _plan(rng, name, known[name], f"{seed}.{step}")
        line = "\t".join(operation)
        os.write(writing, f"?\t{line}\n".encode())
        _do(operation, users[name], store, path)
        os.write(writing, f"=\t{line}\n".encode())
        if step == 0:
            os.write(writing, b"*\n")  # From here on it may be killed.


def _plan(rng: random.Random, name: str, known: list[str], new: str) -> list[str]:
    """What to do next: kind, user, and the ids that it is done to."""
    kind = rng.choices(
        ["remember", "remember_many", "update", "forget", "erase", "backup"], weights=[60, 12, 10, 14, 1, 3]
    )[0]
    if kind in ("update", "forget") and not known:
        kind = "remember"
    if kind == "remember":
        known.append(new)
        return [kind, name, new]
    if kind == "remember_many":
        ids = [f"{new}.{number}" for number in range(4)]
        known += ids
        return [kind, name, *ids]
    if kind == "erase":
        known.clear()
        return [kind, name]
    if kind == "backup":
        return [kind, name, new]
    target = rng.choice(known)
    if kind == "forget":
        known.remove(target)
        return [kind, name, target]
    return [kind, name, target, new]


def _do(operation: list[str], user: UserMemory, store: MemoryStore, path: str) -> None:
    kind, _, *ids = operation
    if kind == "remember":
        user.remember(text(ids[0]), id=ids[0])
    elif kind == "remember_many":
        user.remember_many([Turn(text=text(own_id), id=own_id) for own_id in ids])
    elif kind == "update":
        user.update(ids[0], text=text(ids[1]))
    elif kind == "forget":
        assert user.forget(ids[0]) == 1
    elif kind == "erase":
        user.erase()
    elif kind == "backup":
        store.backup(Path(path).parent / f"backup {ids[0]}")


def text(name: str) -> str:
    """What is stored under an id, or as a change of it: of very different lengths."""
    return f"the text called {name} " + "and more " * (int(name.partition(".")[0]) * 7 % 400)
