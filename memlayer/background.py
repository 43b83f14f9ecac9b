"""A few threads for what nobody waits for, such as a model that writes, which may take minutes.

Apart from `memlayer.workers`, whose threads somebody always waits for: a slow provider must not hold up a recall. The
threads are daemons and end when there is nothing to do, so that a program ends when it wants to; what they do must be
able to end anywhere.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Background"]


class Background:
    """Jobs, each at most once in the queue and never twice at one time.

    Args:
        threads: how many run at one time.
        most: how many may wait.
    """

    def __init__(self, *, threads: int = 2, most: int = 1024) -> None:
        self._threads = threads
        self._most = most
        self._reset()
        if hasattr(os, "register_at_fork"):
            # The parent's threads are not in the child, and its lock may have been held.
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waiting: OrderedDict[object, Callable[[], None]] = OrderedDict()
        self._running: set[object] = set()
        self._alive = 0

    def put(self, key: object, job: Callable[[], None]) -> bool:
        """Queues a job, unless one with this key waits already; false where there is no room for it.

        One that is running is queued once more: it may have looked before this call.
        """
        with self._changed:
            if key in self._waiting:
                return True
            if len(self._waiting) >= self._most:
                return False
            self._waiting[key] = job
            if self._alive < self._threads and self._next() is not None:
                try:
                    threading.Thread(target=self._work, name="memlayer-background", daemon=True).start()
                except RuntimeError:  # No thread is to be had, or the interpreter is ending; whoever wrote goes on.
                    del self._waiting[key]
                    return False
                self._alive += 1
            return True

    def cancel(self, key: object) -> None:
        """Takes a job that waits out of the queue."""
        with self._changed:
            self._waiting.pop(key, None)
            self._changed.notify_all()

    def wait(self, key: object, *, seconds: float) -> bool:
        """Waits until no job with this key waits or runs; whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: key not in self._waiting and key not in self._running, seconds)

    def _next(self) -> object | None:
        return next((key for key in self._waiting if key not in self._running), None)

    def _work(self) -> None:
        changed = self._changed
        while True:
            with changed:
                key = self._next()
                if key is None:
                    self._alive -= 1
                    return
                job = self._waiting.pop(key)
                self._running.add(key)
            try:
                job()
            finally:
                with changed:
                    self._running.discard(key)
                    changed.notify_all()
