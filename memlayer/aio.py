"""The store and one user's memory for asyncio: the same names, the same arguments, the same results, to be awaited.

    async with AsyncMemoryStore.open("memories.db") as store:
        alice = store.user("alice")
        await alice.remember("I'm allergic to peanuts")
        print((await alice.recall("what can't I eat?")).as_prompt())

Every method here is made from the sync one and runs it in one of a few worker threads (`memlayer.workers`), with the
caller's context variables. What was called runs to its end: a task that is cancelled while it waits stops waiting, and
its write is on the disk a moment later, whole; closing the store waits for it.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from memlayer.memory import UserMemory
from memlayer.store import MemoryStore
from memlayer.workers import submit, submit_for

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from concurrent.futures import Future
    from pathlib import Path
    from types import TracebackType

    from memlayer.embedders.protocol import EmbedderIdentity
    from memlayer.health import Breaker, Health

__all__ = ["AsyncMemoryStore", "AsyncUserMemory", "Opening"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
Below = TypeVar("Below", covariant=True)


class _Above(Generic[Below]):
    """What has a sync object below it.

    Args:
        sync: that object.
        owner: for whom its calls are made: what `MemoryStore.close` waits for.
    """

    def __init__(self, sync: Below, *, owner: Breaker) -> None:
        self._sync = sync
        self._owner = owner

    @property
    def sync(self) -> Below:
        """The sync object that does the work. Its methods block the thread that calls them."""
        return self._sync


def _awaited(
    call: Callable[Concatenate[S, P], R], *, owned: bool = True
) -> Callable[Concatenate[_Above[S], P], Coroutine[Any, Any, R]]:
    """The async method that runs a sync one in a worker: its signature, its types and its docstring are kept.

    Args:
        owned: closing the store waits for it. Not for the closing itself.
    """

    @wraps(call, assigned=("__name__", "__doc__"))
    async def method(self: _Above[S], /, *args: P.args, **kwargs: P.kwargs) -> R:
        run = partial(call, self.sync, *args, **kwargs)
        future = submit_for(self._owner, run) if owned else submit(run)
        # Shielded: a cancelled wait must not take a call back that is queued, for whoever waited could not tell whether
        # it was written.
        return await asyncio.shield(asyncio.wrap_future(future))

    method.__qualname__ = f"Async{call.__qualname__}"  # "coroutine 'AsyncUserMemory.recall' was never awaited"
    return method


def _opens(call: Callable[P, MemoryStore]) -> Callable[P, Opening]:
    """`AsyncMemoryStore.open`, made from `MemoryStore.open`."""

    @wraps(call, assigned=("__name__", "__doc__"))
    def opening(*args: P.args, **kwargs: P.kwargs) -> Opening:
        return Opening(partial(call, *args, **kwargs))

    opening.__qualname__ = f"Async{call.__qualname__}"
    opening.__signature__ = inspect.signature(call).replace(return_annotation="Opening")  # type: ignore[attr-defined]
    return opening


class AsyncUserMemory(_Above[UserMemory]):
    """What one user's conversations left behind. Get it from `AsyncMemoryStore.user`; tasks may share it.

    As `UserMemory`, but for `len`: `await memory.count()`.
    """

    def __init__(self, sync: UserMemory) -> None:
        super().__init__(sync, owner=sync.breaker)

    remember = _awaited(UserMemory.remember)
    remember_many = _awaited(UserMemory.remember_many)
    update = _awaited(UserMemory.update)
    forget = _awaited(UserMemory.forget)
    erase = _awaited(UserMemory.erase)

    recall = _awaited(UserMemory.recall)
    history = _awaited(UserMemory.history)
    sessions = _awaited(UserMemory.sessions)
    get = _awaited(UserMemory.get)
    image = _awaited(UserMemory.image)
    count = _awaited(UserMemory.count)

    prepare = _awaited(UserMemory.prepare)
    capture = _awaited(UserMemory.capture)
    facts = _awaited(UserMemory.facts)

    export = _awaited(UserMemory.export)
    import_ = _awaited(UserMemory.import_)

    @property
    def health(self) -> Health:
        """How memory has been doing, for the whole store in this process."""
        return self.sync.health


class AsyncMemoryStore(_Above[MemoryStore]):
    """An open store. Get one from `AsyncMemoryStore.open`; tasks may share it, and event loops too.

    It is an async context manager; `close` is what its end does.
    """

    def __init__(self, sync: MemoryStore) -> None:
        super().__init__(sync, owner=sync._breaker)

    open = staticmethod(_opens(MemoryStore.open))

    def user(self, user_id: str) -> AsyncUserMemory:
        """The memory of one user, and the only way to data. Reads and writes nothing, so it is not awaited.

        Args:
            user_id: 1 to 512 bytes in UTF-8, taken exactly; whoever calls must know that it is this user.
        """
        return AsyncUserMemory(self.sync.user(user_id))

    count_users = _awaited(MemoryStore.count_users)
    verify = _awaited(MemoryStore.verify)
    reembed = _awaited(MemoryStore.reembed)
    backup = _awaited(MemoryStore.backup)
    key_slots = _awaited(MemoryStore.key_slots)
    add_key = _awaited(MemoryStore.add_key)
    remove_key = _awaited(MemoryStore.remove_key)
    new_recovery_key = _awaited(MemoryStore.new_recovery_key)
    close = _awaited(MemoryStore.close, owned=False)

    @property
    def path(self) -> Path:
        """The file."""
        return self.sync.path

    @property
    def embedder(self) -> EmbedderIdentity:
        """The identity of the embedder that the store is written with."""
        return self.sync.embedder

    @property
    def read_only(self) -> bool:
        """Whether the file can only be read."""
        return self.sync.read_only

    async def __aenter__(self) -> AsyncMemoryStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self.sync!r}"


class Opening:
    """A store that is about to be opened: `await` it, or enter it with `async with`, which closes it at the end.

    Nothing happens before that. It is a class because it has to be both.
    """

    def __init__(self, call: Callable[[], MemoryStore]) -> None:
        self._call = call
        self._store: AsyncMemoryStore | None = None

    def __await__(self) -> Generator[Any, None, AsyncMemoryStore]:
        return self._opened().__await__()

    async def __aenter__(self) -> AsyncMemoryStore:
        self._store = await self
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is not None:
            await self._store.close()

    async def _opened(self) -> AsyncMemoryStore:
        future = submit(self._call)
        try:
            return AsyncMemoryStore(await asyncio.shield(asyncio.wrap_future(future)))
        except asyncio.CancelledError:
            submit(_close, future)  # Nobody will have the store that is being opened.
            raise


def _close(future: Future[MemoryStore]) -> None:
    future.result().close()
