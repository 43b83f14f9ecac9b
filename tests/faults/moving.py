"""A process that changes a store's embedder, to be killed, and one that says what a store then holds.

Each is a fork of one warm process, as in `killing`.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from typing import TYPE_CHECKING, Any

from memlayer import EmbedderMismatchError, MemoryStore, RawKey, Turn, reembedding
from memlayer.items import ItemKind
from memlayer.store import open_to_reembed
from memlayer.testing import HashingEmbedder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.children import Link

KEY = RawKey(bytes(range(32)))
USERS = {"alice": 60, "bob": 20, "carol": 3, "dora": 1, "eric": 30}
DIMENSIONS = (48, 64)


class Slow(HashingEmbedder):
    """Takes a millisecond a text, so that there is a middle to be killed in."""

    def embed_documents(self, texts: Any) -> Any:
        time.sleep(0.001 * len(texts))
        return super().embed_documents(texts)


def text(name: str, number: int) -> str:
    """The user's text of this number, of very different lengths."""
    return f"{name} was told of {name}{number} " + "and again " * (number * 7 % 60)


def fill(path: str) -> None:
    """Makes the store, in the space of the first length."""
    with MemoryStore.open(path, keys=KEY, embedder=HashingEmbedder(DIMENSIONS[0])) as store:
        for name, count in USERS.items():
            store.user(name).remember_many([Turn(text=text(name, n), id=str(n)) for n in range(count)])


def nursery(link: Link, *, warm: str) -> None:
    """Forks what the test asks for, one at a time: `["move", path, dimensions, seed]`, which is killed at a random
    moment after it has begun, unless it has ended; `["move", path, dimensions, 0]`, which is not; `["look", path]`.
    Sends the return code and what the process said. Ends when the link does."""
    fill(warm)
    with open_to_reembed(warm, keys=KEY, embedder=HashingEmbedder(16)) as store:
        store.reembed(HashingEmbedder(16))
        store.user("alice").recall("x")
    while True:
        try:
            order, *arguments = link.receive()
        except EOFError:
            return
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            work: dict[str, Callable[..., None]] = {"move": _move, "look": _look}
            _in_child(work[order], writing, arguments)
        os.close(writing)
        with open(reading, "rb") as pipe:
            said = pipe.readline()
            if order == "move" and arguments[2]:
                time.sleep(random.Random(arguments[2]).uniform(0, 0.35))
                os.kill(pid, signal.SIGKILL)
            said += pipe.read()
        link.send([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode()])


def _in_child(work: Callable[..., None], writing: int, arguments: list[Any]) -> None:
    code = 1
    try:
        work(writing, *arguments)
        code = 0
    except BaseException as error:  # noqa: BLE001  the test reads it; nothing of the parent's may run on in here
        os.write(writing, f"! {type(error).__name__}: {error}\n{traceback.format_exc()}\n".encode())
    finally:
        os._exit(code)


def _move(writing: int, path: str, dimensions: int, seed: int) -> None:
    reembedding._TEXTS_AT_ONCE = 8
    reembedding._USERS_AT_ONCE = 2
    reembedding.SAVE_AFTER_SECONDS = 0.0
    new = Slow(dimensions)
    with open_to_reembed(path, keys=KEY, embedder=new) as store:
        os.write(writing, b"begun\n")
        report = store.reembed(new)
    os.write(writing, f"{report.users} {report.memories} {report.embedded} {report.files_clean} {seed}\n".encode())


def _look(writing: int, path: str) -> None:
    """Reads everything, searches each user with whichever embedder is the user's, and says by user which that was."""
    found = {}
    for dimensions in DIMENSIONS:
        embedder = HashingEmbedder(dimensions)
        with open_to_reembed(path, keys=KEY, embedder=embedder) as store:
            if dimensions == DIMENSIONS[0]:
                store.verify()
            for name, count in USERS.items():
                user = store.user(name)
                turns = {turn.id: turn.text for turn in user.history(limit=10_000)}
                assert turns == {str(n): text(name, n) for n in range(count)}, name
                saved = len(user.items(ItemKind.VECTORS).read())
                try:
                    for n in range(0, count, 7):
                        hit = user.recall(text(name, n), k=1)[0]
                        # A vector is compared with vectors alone; words in common count for nothing.
                        near = user.recall(embedder.embed_query(text(name, n)), k=1)[0]
                        assert hit.text == near.text == text(name, n), (name, n)
                        assert near.score > 0.999, (name, n)
                except EmbedderMismatchError:
                    continue
                assert name not in found, name
                found[name] = f"{dimensions}:{saved}"
    assert found.keys() == USERS.keys()
    os.write(writing, ("".join(f"{name} {what}\n" for name, what in found.items())).encode())
