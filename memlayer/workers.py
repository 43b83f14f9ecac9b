"""A few threads for what must not run on an event loop, or needs a time limit. One small pool a process."""

from __future__ import annotations

import contextvars
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["submit"]

P = ParamSpec("P")
R = TypeVar("R")

# Embedding and SQLite use the cores by themselves; more threads than this only wait for each other.
_THREADS = 8

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None


def submit(call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """Runs a call in a worker, in a copy of the caller's context."""
    context = contextvars.copy_context()
    return _executor().submit(lambda: context.run(call, *args, **kwargs))


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="memlayer")
        return _pool


def _after_fork_in_child() -> None:
    # The parent's threads are not here, and its lock may have been held.
    global _lock, _pool
    _lock = threading.Lock()
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
