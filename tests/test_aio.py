"""The async classes: the same names as the sync ones, nothing on the event loop, nothing lost to a cancelled task."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import pickle
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from memlayer import (
    AsyncMemoryStore,
    AsyncUserMemory,
    InvalidInputError,
    MemoryStore,
    RawKey,
    StoreClosedError,
    Turn,
    WrongKeyError,
    wrap,
)
from memlayer.memory import UserMemory
from memlayer.testing import HashingEmbedder
from memlayer.wrapping import one_user
from tests.adapters.loopback import Loopback
from tests.adapters.wires import openai as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import numpy as np
    from numpy.typing import NDArray

PACKAGE = Path(__file__).parent.parent / "memlayer"
KEY = RawKey(bytes(range(32)))

# What adapters take from the memory below, which they get as `.sync`.
FOR_ADAPTERS = {"items", "check_options"}

NOTED: contextvars.ContextVar[str] = contextvars.ContextVar("NOTED", default="nothing")


class Waiting(HashingEmbedder):
    """An embedder that takes its time: while `beats` are wanted, a call ends after that many turns of the event loop.

    Called on the event loop itself it would wait for ever; it gives up instead, and says so in `starved`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.beats = 0
        self.starved = False
        self.threads: set[int] = set()
        self.noted: list[str] = []
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self._turned = threading.Semaphore(0)

    def embed_documents(self, texts: Any) -> NDArray[np.float32]:
        self._wait()
        return super().embed_documents(texts)

    def embed_query(self, text: str) -> NDArray[np.float32]:
        self._wait()
        return super().embed_query(text)

    def turn(self) -> None:
        """The loop has turned once."""
        self._turned.release()

    def _wait(self) -> None:
        self.threads.add(threading.get_ident())
        self.noted.append(NOTED.get())
        while self._turned.acquire(blocking=False):
            pass
        self.starved |= not all(self._turned.acquire(timeout=5) for _ in range(self.beats))
        self.begun.set()
        self.may_end.wait(30)


def opened(folder: Path, embedder: HashingEmbedder | None = None, **options: Any) -> Any:
    return AsyncMemoryStore.open(
        folder / "memories.db", keys=KEY, embedder=HashingEmbedder() if embedder is None else embedder, **options
    )


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@asynccontextmanager
async def heartbeat(embedder: Waiting) -> AsyncIterator[None]:
    async def beat() -> None:
        while True:
            embedder.turn()
            await asyncio.sleep(0.001)

    task = asyncio.create_task(beat())
    yield
    task.cancel()


@asynccontextmanager
async def watched() -> AsyncIterator[list[str]]:
    """The functions of memlayer that run on this thread, by file and name, but for those of aio.py and workers.py."""
    seen: list[str] = []

    def note(frame: Any, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE) and path.name not in ("aio.py", "workers.py"):
            seen.append(f"{path.name} {frame.f_code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(before)


# --- The same names ---


@pytest.mark.parametrize(("sync", "above"), [(MemoryStore, AsyncMemoryStore), (UserMemory, AsyncUserMemory)])
def test_every_public_name_of_the_sync_class_is_there(sync, above):
    """Nothing public of the sync classes is missing in the async ones, which add `sync` and nothing else."""
    assert public(above) - public(sync) == {"sync"}
    assert public(sync) - public(above) <= FOR_ADAPTERS


@pytest.mark.parametrize(
    ("sync", "above", "name"),
    [
        pytest.param(sync, above, name, id=f"{above.__name__}.{name}")
        for sync, above in ((MemoryStore, AsyncMemoryStore), (UserMemory, AsyncUserMemory))
        for name in sorted(public(above) - {"sync"})
    ],
)
def test_each_takes_what_the_sync_one_takes(sync, above, name):
    """A method has the sync one's parameters and docstring and is a coroutine function; a property is a property."""
    mine, theirs = inspect.getattr_static(above, name), inspect.getattr_static(sync, name)
    if isinstance(theirs, property):
        assert isinstance(mine, property)
        return
    mine, theirs = getattr(above, name), getattr(sync, name)
    assert mine.__qualname__ == f"Async{theirs.__qualname__}"
    ours, wanted = inspect.signature(mine), inspect.signature(theirs)
    if name in ("open", "user"):
        assert not inspect.iscoroutinefunction(mine)
        assert list(ours.parameters.values()) == list(wanted.parameters.values())
        assert ours.return_annotation in ("Opening", "AsyncUserMemory")
    else:
        assert inspect.iscoroutinefunction(mine)
        assert ours == wanted
        assert mine.__doc__ == theirs.__doc__


def test_a_user_has_no_length_and_is_true(tmp_path):
    """`len` would block, so there is none; and a user without memories is no false value."""

    async def run():
        async with opened(tmp_path) as store:
            alice = store.user("alice")
            with pytest.raises(TypeError):
                len(alice)
            assert alice
            assert await alice.count() == 0

    asyncio.run(run())


def test_importing_memlayer_loads_no_asyncio():
    """The async classes come when they are asked for: `import memlayer` alone loads neither numpy nor asyncio."""
    import subprocess

    program = (
        "import sys, memlayer\n"
        "light = {'numpy', 'asyncio', 'sqlalchemy'} & set(sys.modules)\n"
        "from memlayer import AsyncMemoryStore, AsyncUserMemory\n"
        "print(sorted(light), hasattr(memlayer, 'AsyncMemoryStroe'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


# --- Nothing on the event loop ---

SECOND_KEY = RawKey(bytes(32))
TURNS = [Turn(text="one"), Turn(text="two", id="2")]
PASSPHRASE = "correct horse battery staple"


async def _export(memory: AsyncUserMemory, path: Path) -> Path:
    await memory.export(path, passphrase=PASSPHRASE)
    return path


async def _capture(memory: AsyncUserMemory) -> None:
    await memory.capture(await memory.prepare([{"role": "user", "content": "What about peanuts?"}]), "None for you")


# A user with one memory, its id and a folder: what is called.
OF_A_USER: dict[str, Callable[[AsyncUserMemory, str, Path], Awaitable[Any]]] = {
    "remember": lambda memory, _, __: memory.remember("I live in Lisbon"),
    "remember_many": lambda memory, _, __: memory.remember_many(TURNS),
    "update": lambda memory, known, _: memory.update(known, text="walnuts, not peanuts"),
    "forget": lambda memory, known, _: memory.forget(known),
    "erase": lambda memory, _, __: memory.erase(),
    "recall": lambda memory, _, __: memory.recall("peanuts", k=3),
    "history": lambda memory, _, __: memory.history(limit=5),
    "sessions": lambda memory, _, __: memory.sessions(),
    "get": lambda memory, known, _: memory.get(known),
    "image": lambda memory, known, _: memory.image(known),
    "count": lambda memory, _, __: memory.count(),
    "prepare": lambda memory, _, __: memory.prepare([{"role": "user", "content": "What about peanuts?"}]),
    "capture": lambda memory, _, __: _capture(memory),
    "facts": lambda memory, _, __: memory.facts(),
    "export": lambda memory, _, folder: _export(memory, folder / "alice.memlayer"),
    "import_": lambda memory, _, folder: memory.import_(folder / "bob.memlayer", passphrase=PASSPHRASE),
}
EMBEDDING = {"remember", "remember_many", "update", "recall", "prepare", "capture"}

OTHER_EMBEDDER = HashingEmbedder(32)

OF_A_STORE: dict[str, Callable[[AsyncMemoryStore, Path], Awaitable[Any]]] = {
    "count_users": lambda store, _: store.count_users(),
    "verify": lambda store, _: store.verify(),
    "reembed": lambda store, _: store.reembed(OTHER_EMBEDDER),
    "backup": lambda store, folder: store.backup(folder / "backup.db"),
    "key_slots": lambda store, _: store.key_slots(),
    "add_key": lambda store, _: store.add_key(SECOND_KEY),
    "remove_key": lambda store, _: _two_keys_and_one(store),
    "new_recovery_key": lambda store, _: store.new_recovery_key(),
    "close": lambda store, _: store.close(),
}


async def _two_keys_and_one(store: AsyncMemoryStore) -> None:
    await store.remove_key(await store.add_key(SECOND_KEY))


def test_each_method_is_called_below():
    """The two tests that follow leave no method out."""
    for kind, calls in ((AsyncUserMemory, OF_A_USER), (AsyncMemoryStore, OF_A_STORE)):
        assert {name for name in public(kind) if inspect.iscoroutinefunction(getattr(kind, name))} == set(calls)


@pytest.mark.parametrize("name", OF_A_USER)
def test_a_users_methods_leave_the_loop_alone(name, tmp_path):
    """No code of memlayer's runs on the loop's thread, and the loop turns 20 times while a text is being embedded."""
    embedder = Waiting()

    async def run():
        async with opened(tmp_path, embedder) as store:
            bob = store.user("bob")
            await bob.remember("I'm allergic to peanuts")
            await _export(bob, tmp_path / "bob.memlayer")
            alice = store.user("alice")
            kept = await alice.remember("I'm allergic to peanuts")
            calls = embedder.document_calls + embedder.query_calls
            embedder.beats = 20
            async with heartbeat(embedder), watched() as seen:
                await OF_A_USER[name](alice, kept.id, tmp_path)
            assert seen == []
            embeds = embedder.document_calls + embedder.query_calls > calls
        assert embeds == (name in EMBEDDING)
        assert not embedder.starved
        assert threading.get_ident() not in embedder.threads

    asyncio.run(run())


@pytest.mark.parametrize("name", OF_A_STORE)
def test_a_stores_methods_leave_the_loop_alone(name, tmp_path):
    """No code of memlayer's runs on the loop's thread."""

    async def run():
        store = await opened(tmp_path)
        await store.user("alice").remember("I'm allergic to peanuts")
        async with watched() as seen:
            await OF_A_STORE[name](store, tmp_path)
        assert seen == []
        await store.close()

    asyncio.run(run())


def test_opening_leaves_the_loop_alone(tmp_path):
    """No code of memlayer's runs on the loop's thread while a store is made, opened and closed."""

    async def run():
        async with watched() as seen:
            async with AsyncMemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=EMBEDDER):
                pass
            await (await AsyncMemoryStore.open(tmp_path / "m.db", keys=KEY, embedder=EMBEDDER)).close()
        assert seen == []

    EMBEDDER = HashingEmbedder()
    asyncio.run(run())


# --- Opening and closing ---


def test_a_store_is_awaited_or_entered(tmp_path):
    """`await open(...)` and `async with open(...)` give the same kind of store; leaving either block closes it."""

    async def run():
        async with opened(tmp_path) as store:
            await store.user("alice").remember("peanuts")
            assert isinstance(store, AsyncMemoryStore)
        with pytest.raises(StoreClosedError):
            await store.count_users()
        again = await opened(tmp_path)
        async with again as same:
            assert same is again
            assert [memory.text for memory in await same.user("alice").history()] == ["peanuts"]
            assert (same.path, same.read_only, same.embedder) == (
                tmp_path / "memories.db",
                False,
                HashingEmbedder().identity,
            )
            assert repr(same) == f"AsyncMemoryStore({str(tmp_path / 'memories.db')!r})"
        with pytest.raises(StoreClosedError):
            again.user("alice")
        assert repr(again) == "AsyncMemoryStore(closed)"
        await again.close()

    asyncio.run(run())


def test_nothing_happens_before_the_await(tmp_path):
    """A call of open that nobody awaits makes no file and warns of nothing."""
    opened(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_errors_come_out_of_the_await_as_they_are(tmp_path):
    """What the sync classes raise is raised by the await, also while the store is being opened."""

    async def run():
        async with opened(tmp_path) as store:
            with pytest.raises(InvalidInputError):
                await store.user("alice").remember("")
            with pytest.raises(InvalidInputError):
                store.user("")
        with pytest.raises(WrongKeyError):
            await AsyncMemoryStore.open(tmp_path / "memories.db", keys=RawKey(bytes(32)), embedder=HashingEmbedder())
        with pytest.raises(TypeError):
            await opened(tmp_path, no_such_option=1)

    asyncio.run(run())


def test_a_store_serves_one_loop_after_another(tmp_path):
    """Nothing in a store belongs to the event loop that opened it."""
    store = asyncio.run(_opened_and_told(tmp_path))
    assert asyncio.run(store.user("alice").count()) == 1
    asyncio.run(store.close())


async def _opened_and_told(folder: Path) -> AsyncMemoryStore:
    store = await opened(folder)
    await store.user("alice").remember("peanuts")
    assert isinstance(store, AsyncMemoryStore)
    return store


def test_it_cannot_be_pickled(tmp_path):
    """A store holds keys and connections; pickling it raises, as for the sync one."""

    async def run():
        async with opened(tmp_path) as store:
            with pytest.raises(TypeError, match="cannot be pickled"):
                pickle.dumps(store)

    asyncio.run(run())


def test_the_memory_below_is_the_users_own(tmp_path):
    """`sync` is the UserMemory that does the work: it cannot be replaced, and adapters find it."""

    async def run():
        async with opened(tmp_path) as store:
            alice = store.user("alice")
            await alice.remember("peanuts")
            assert isinstance(alice.sync, UserMemory)
            assert one_user(alice) is alice.sync
            with pytest.raises(AttributeError):
                alice.sync = store.user("bob").sync
            assert alice.health == alice.sync.health
            assert alice.health.ok

    asyncio.run(run())


# --- Tasks ---


def test_a_cancelled_write_is_whole(tmp_path):
    """A task that is cancelled while it remembers stops at once; its turns are all on the disk afterwards."""
    embedder = Waiting()

    async def run():
        async with opened(tmp_path, embedder) as store:
            alice = store.user("alice")
            embedder.may_end.clear()
            task = asyncio.create_task(alice.remember_many([Turn(text=f"fact {number}") for number in range(20)]))
            await asyncio.to_thread(embedder.begun.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await alice.count() == 0
            embedder.may_end.set()
            async with asyncio.timeout(60):
                while not await alice.count():
                    pass
            assert [memory.text for memory in await alice.history()] == [f"fact {number}" for number in range(20)]

    asyncio.run(run())


def test_a_cancelled_write_that_waits_for_a_worker_is_written(tmp_path):
    """Also where every worker was busy when the task was cancelled: the write had not begun, and is not lost."""
    embedder = Waiting()

    async def run():
        async with opened(tmp_path, embedder) as store:
            embedder.may_end.clear()
            tasks = [asyncio.create_task(store.user(f"user {number}").remember("fact")) for number in range(30)]
            await asyncio.to_thread(embedder.begun.wait, 10)
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)
            embedder.may_end.set()
            async with asyncio.timeout(60):
                while await store.count_users() < 30:
                    pass
            assert (await store.verify()).memories == 30

    asyncio.run(run())


def test_closing_waits_for_what_was_cancelled(tmp_path):
    """A write whose task was cancelled is on the disk once the store is closed: a server that stops loses nothing."""
    embedder = Waiting()

    async def run():
        store = await opened(tmp_path, embedder)
        embedder.may_end.clear()
        tasks = [asyncio.create_task(store.user(f"user {number}").remember("fact")) for number in range(3)]
        await asyncio.to_thread(embedder.begun.wait, 10)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        closing = asyncio.create_task(store.close())
        await asyncio.wait([closing], timeout=0.5)
        assert not closing.done()
        embedder.may_end.set()
        await closing
        async with opened(tmp_path) as again:
            assert await again.count_users() == 3

    asyncio.run(run())


def test_a_cancelled_opening_leaves_no_store_open(tmp_path, monkeypatch):
    """A store that nobody gets, because the task was cancelled while it was being opened, is closed again."""
    from memlayer import opening

    begun, may_end, closed = threading.Event(), threading.Event(), threading.Event()
    real = opening.open_store

    def slow(*args: Any, **kwargs: Any) -> Any:
        begun.set()
        may_end.wait(10)
        return real(*args, **kwargs)

    def noted(self: MemoryStore) -> None:
        really(self)
        closed.set()

    really = MemoryStore.close
    monkeypatch.setattr(opening, "open_store", slow)
    monkeypatch.setattr(MemoryStore, "close", noted)

    async def run():
        task = asyncio.ensure_future(_awaiting(opened(tmp_path)))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not closed.is_set()
        may_end.set()
        assert await asyncio.to_thread(closed.wait, 10)

    asyncio.run(run())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["memories.db"]


async def _awaiting(opening: Any) -> Any:
    return await opening


def test_context_variables_reach_the_embedder(tmp_path):
    """The caller's context goes along into the worker: a trace that was begun in the task goes on in the embedder."""
    embedder = Waiting()

    async def one(store: AsyncMemoryStore, name: str) -> None:
        NOTED.set(name)
        await store.user(name).remember(f"I am {name}")

    async def run():
        async with opened(tmp_path, embedder) as store:
            await asyncio.gather(*(one(store, f"task {number}") for number in range(5)))
        assert sorted(embedder.noted) == [f"task {number}" for number in range(5)]
        assert NOTED.get() == "nothing"

    asyncio.run(run())


def test_workers_are_few(tmp_path):
    """A hundred calls at once run in at most eight threads."""
    embedder = Waiting()

    async def run():
        async with opened(tmp_path, embedder) as store:
            alice = store.user("alice")
            await asyncio.gather(*(alice.remember(f"fact {number}") for number in range(100)))
            assert await alice.count() == 100
        assert len(embedder.threads) <= 8

    asyncio.run(run())


def test_fifty_tasks_of_two_users_stay_apart(tmp_path):
    """With 50 tasks at once, what a user recalls and prepares holds that user's words and none of the other's."""
    words = {"alice": "peanuts", "bob": "walnuts"}

    async def one(store: AsyncMemoryStore, name: str, number: int) -> str:
        memory = store.user(name)
        await memory.remember(f"fact {number}: I eat no {words[name]}", session=f"s{number}")
        hits = await memory.recall("what do I not eat? fact", k=30)
        prepared = await memory.prepare([{"role": "user", "content": f"Question {number}: fact, what do I not eat?"}])
        await memory.capture(prepared, f"No {words[name]}, ever")
        history = await memory.history(limit=200)
        assert hits
        assert prepared.block
        return repr([hits.as_prompt(), prepared.messages, prepared.block, [turn.text for turn in history]])

    async def run():
        async with opened(tmp_path) as store:
            names = [name for name in words for _ in range(25)]
            said = await asyncio.gather(*(one(store, name, number) for number, name in enumerate(names)))
            for name, text in zip(names, said, strict=True):
                other = next(word for who, word in words.items() if who != name)
                assert words[name] in text
                assert other not in text
            assert [await store.user(name).count() for name in words] == [75, 75]

    asyncio.run(run())


def test_fifty_wrapped_clients_of_two_users_stay_apart(tmp_path):
    """`wrap` takes an async user: 50 tasks at once, whole and streamed, and no request has a word of the other user."""
    openai = pytest.importorskip("openai")
    words = {"alice": "peanuts", "bob": "walnuts"}

    async def one(store: AsyncMemoryStore, shared: Any, name: str, number: int) -> None:
        client = wrap(shared, store.user(name), session=f"{name} {number}", recall_timeout=60)
        text = f"{name}, {number}: what do I not eat?"
        asked: Any = {"model": "m", "messages": [{"role": "user", "content": text}]}
        if number % 4 < 2:
            await client.chat.completions.create(**asked)
            return
        async with await client.chat.completions.create(**asked, stream=True) as events:
            async for _ in events:
                pass

    async def run(url: str) -> None:
        async with (
            opened(tmp_path) as store,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as shared,
        ):
            for name, word in words.items():
                await store.user(name).remember(f"I do not eat {word}")
            await asyncio.gather(*(one(store, shared, ("alice", "bob")[number % 2], number) for number in range(50)))
            for name in words:
                memory = store.user(name)
                assert await memory.count() == 1 + 2 * 25
                assert memory.health.ok

    with Loopback(wire.Chatbot("Noted.")) as server:
        asyncio.run(run(server.url))
    assert len(server.bodies) == 50
    for body in server.bodies:
        sent = json.dumps(body)
        name, other = ("alice", "bob") if "alice, " in sent else ("bob", "alice")
        assert sent.count(f"I do not eat {words[name]}") == 1
        assert words[other] not in sent
        assert other not in sent
