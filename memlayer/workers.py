"""A few threads for what must not run on an event loop, or needs a time limit. One small pool a process."""

from __future__ import annotations

import contextvars
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["finish", "submit", "submit_for"]

P = ParamSpec("P")
R = TypeVar("R")

# Embedding and SQLite use the cores by themselves; more threads than this only wait for each other.
_THREADS = 8

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_owned: dict[int, set[Future[Any]]] = {}


def submit(call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """Runs a call in a worker, in a copy of the caller's context."""
    context = contextvars.copy_context()
    return _executor().submit(lambda: context.run(call, *args, **kwargs))


def submit_for(owner: object, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """As `submit`; `finish(owner)` waits for it."""
    future = submit(call, *args, **kwargs)
    with _lock:
        futures = _owned.setdefault(id(owner), set())
        futures.add(future)
    future.add_done_callback(lambda done: futures.discard(done))
    return future


def finish(owner: object, *, seconds: float) -> None:
    """Waits until all that was submitted for this owner is done, or the time is over."""
    with _lock:
        futures = list(_owned.pop(id(owner), ()))
    wait(futures, timeout=seconds)


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="memlayer")
        return _pool


def _after_fork_in_child() -> None:
    # The parent's threads are not here, and its lock may have been held.
    global _lock, _owned, _pool
    _lock = threading.Lock()
    _owned = {}
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
