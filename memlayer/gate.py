"""A gate before a fork: SQLite must have no connection open in a process that forks.

SQLite keeps, for each process and file, what it believes about its locks. A child inherits the belief and not the
locks: when the parent then closes the file, the log is removed while the child writes to it (measured: acknowledged
writes lost). So a fork waits until no call is inside of the database, closes the connections that are idle, and only
then happens; both sides open new ones.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ForkGate"]

PATIENCE_SECONDS = 10.0
"""How long a fork waits for calls that are under way; a recall or a commit takes milliseconds."""


class ForkGate:
    """Counts the calls that are inside, and keeps new ones out while the process forks."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._closed = False
        self._own = threading.local()

    @contextmanager
    def passed(self) -> Iterator[None]:
        """A call that uses a connection. One within another passes at once: the outer one keeps the gate open."""
        depth = getattr(self._own, "depth", 0)
        counted = False
        try:
            with self._condition:
                while self._closed and not depth:
                    self._condition.wait()
                self._inside += 1
                counted = True
            self._own.depth = depth + 1
            yield
        finally:
            self._own.depth = depth
            if counted:
                with self._condition:
                    self._inside -= 1
                    self._condition.notify_all()

    def close(self) -> bool:
        """Before a fork: keeps new calls out; whether all that were inside have left."""
        until = time.monotonic() + PATIENCE_SECONDS
        with self._condition:
            self._closed = True
            # Not for itself: who forks in the middle of a call of its own can only be told so, in the child.
            while self._inside and not getattr(self._own, "depth", 0):
                if not self._condition.wait(until - time.monotonic()):
                    break
            return self._inside == 0

    def open(self) -> None:
        """After the fork, in the parent."""
        with self._condition:
            self._closed = False
            self._condition.notify_all()
