"""Whether memory works: what failed lately, and a pause after repeated failures.

Memory never breaks the chat. A call that fails goes out without memory; after some failures in a row nothing is tried
for a while, so that a broken disk or model does not cost every answer its time budget (a circuit breaker: Nygard,
Release It!, chapter 5). One breaker serves all handles of a store, in all of its threads.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlayer.errors import MemlayerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Breaker", "Health", "Loading"]

log = logging.getLogger("memlayer")

FAILURES_BEFORE_PAUSE = 3
"""One failure is bad luck and two can share a cause that passes; the third in a row is a state."""

PAUSE_SECONDS = 30.0
"""Long enough that retries cost next to nothing, short enough that a chat has its memory back soon."""

LOADING_SECONDS = 10.0
"""How long the first answers wait for the embedder's weights; about twice what they take on two slow cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How memory has been doing in this process, for one store.

    Attributes:
        ok: whether the last try worked, or there was none.
        failures: how many failed in a row.
        paused: for how many seconds more nothing is tried; 0 where something is.
        error: the `code` of the last failure, or the name of its class; None where the last try worked.
    """

    ok: bool
    failures: int
    paused: float
    error: str | None


class Breaker:
    """Counts failures and opens after too many; shared by threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._until = 0.0
        self._error: str | None = None

    @property
    def health(self) -> Health:
        """As of now."""
        with self._lock:
            paused = max(0.0, self._until - self._clock())
            return Health(ok=self._error is None, failures=self._failures, paused=paused, error=self._error)

    def allows(self) -> bool:
        """Whether memory may be tried; when a pause is over, for one call, and for all once that one has worked."""
        with self._lock:
            if self._failures < FAILURES_BEFORE_PAUSE:
                return True
            now = self._clock()
            if now < self._until:
                return False
            self._until = now + PAUSE_SECONDS  # The others wait for how this one fares.
            return True

    def succeeded(self) -> None:
        """A try worked."""
        if self._error is not None:
            with self._lock:
                self._failures, self._until, self._error = 0, 0.0, None

    def failed(self, error: BaseException, *, doing: str, counts: bool = True, quiet: bool = False) -> None:
        """A try failed: counts it, if it says something about the whole store; unless `quiet`, one log line says so."""
        name = error.code if isinstance(error, MemlayerError) else type(error).__name__
        with self._lock:
            self._failures += counts
            self._error = name
            pausing = counts and self._failures >= FAILURES_BEFORE_PAUSE
            if pausing:
                self._until = self._clock() + PAUSE_SECONDS
        note = f"; nothing is tried for {PAUSE_SECONDS:.0f} s" if pausing else ""
        level = logging.DEBUG if quiet else logging.WARNING
        log.log(level, "memory failed while %s (%s); the chat goes on without it%s", doing, name, note)


class Loading:
    """The loading of an embedder's weights, once, in a thread of its own.

    Args:
        load: does it; None for an embedder that has nothing to load.
    """

    def __init__(self, load: Callable[[], None] | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        # A future, because both a thread and an event loop can wait for one. Running, so that nobody can cancel it.
        self._done: Future[None] = Future()
        self._done.set_running_or_notify_cancel()
        self._until: float | None = None
        if load is None:
            self._done.set_result(None)

    def start(self) -> None:
        """Begins, unless it has begun."""
        if self._until is not None or self._done.done():
            return
        with self._lock:
            if self._until is None:
                self._until = self._clock() + LOADING_SECONDS
                threading.Thread(target=self._run, name="memlayer-loading", daemon=True).start()

    def patience(self) -> float:
        """For how many seconds more a call may wait for it; 0 once it is loaded, or its time is over."""
        if self._done.done():
            return 0.0
        self.start()
        return max(0.0, (self._until or 0.0) - self._clock())

    @property
    def is_done(self) -> bool:
        """Whether it has ended, well or not: whoever embeds then hears why."""
        return self._done.done()

    def wait(self, seconds: float) -> bool:
        """Waits for its end; whether it has ended."""
        concurrent.futures.wait([self._done], timeout=seconds)
        return self.is_done

    async def await_(self, seconds: float) -> bool:
        """As `wait`, on an event loop, and with no thread waiting."""
        import asyncio  # Only whoever has a loop needs it.

        await asyncio.wait([asyncio.wrap_future(self._done)], timeout=seconds)
        return self.is_done

    def _run(self) -> None:
        try:
            if self._load is not None:
                self._load()
        except Exception as error:  # noqa: BLE001  whatever it is, the first embedding raises it where it can be told
            log.debug("the embedder could not be loaded ahead of time (%s)", type(error).__name__)
        finally:
            self._done.set_result(None)
