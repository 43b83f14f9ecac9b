"""What every adapter holds: one user's memory, one conversation, and the promise that memory never breaks the chat.

    call = injector.before(codec, request)      # recall, render, put into a copy of the request
    with call:                                  # nothing inside of it is given memory a second time
        response = send(call.request)
    call.after(response)                        # or: for event in call.tee(response)

Whatever fails in here is counted and logged, and the request goes out as it came; `on_error="raise"` lets it through.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from memlayer import workers
from memlayer.codec import Piece
from memlayer.errors import (
    EmbedderMismatchError,
    InvalidInputError,
    ReadOnlyStoreError,
    RecallTimeoutError,
    StoreDamagedError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextvars import Token

    from memlayer.codec import Codec
    from memlayer.health import Health
    from memlayer.injection import Prepared
    from memlayer.memory import UserMemory

__all__ = ["AsyncTee", "Call", "Injector", "OnError", "Tee"]

log = logging.getLogger("memlayer")

OnError: TypeAlias = Literal["warn", "raise", "ignore"]
"""What a failure of memory does: one log line, an error to the caller, or nothing."""

_NOT_THE_STORE = (EmbedderMismatchError, InvalidInputError, ReadOnlyStoreError, StoreDamagedError)

CAPTURE_SECONDS = 10.0
"""How long an answer is held back until it is remembered; after that the write goes on by itself."""

# The request of ours that this context is inside of: a wrapped client inside of a wrapped framework adds nothing of its
# own while it is under way. A framework may tell of its end in another context, so the end is kept in the call.
_inside: ContextVar[Call | None] = ContextVar("memlayer_inside", default=None)


class Injector:
    """Memory for one conversation of one user, behind whichever client.

    Args:
        memory: the user's.
        session: the conversation, or None.
        on_error: what a failure of memory does.
        recall_timeout: for how many seconds a request waits for its memories.
        keep_partial: remember the beginning of a reply that broke off, with the metadata `{"incomplete": true}`.
        options: as `UserMemory.prepare` takes them: placement, k, max_tokens, count_tokens, min_score, where, sources.
    """

    def __init__(
        self,
        memory: UserMemory,
        *,
        session: str | None = None,
        on_error: OnError = "warn",
        recall_timeout: float = 1.0,
        keep_partial: bool = False,
        **options: Any,
    ) -> None:
        if on_error not in ("warn", "raise", "ignore"):
            raise InvalidInputError("on_error must be warn, raise or ignore")
        if isinstance(recall_timeout, bool) or not isinstance(recall_timeout, int | float) or recall_timeout <= 0:
            raise InvalidInputError("recall_timeout must be a number of seconds above 0")
        self.memory = memory
        self._options = {"session": session, **options}
        # Options that make no sense are refused here, and not at the first request.
        memory.prepare([], **self._options)
        self._on_error = on_error
        self._recall_timeout = recall_timeout
        self._keep_partial = keep_partial
        memory.loading.start()

    @property
    def health(self) -> Health:
        """How memory has been doing, for the whole store in this process."""
        return self.memory.health

    def __repr__(self) -> str:
        return f"<Injector {'well' if self.health.ok else 'failing'}>"

    # ---------------------------------------------------------------- before the request

    def before(self, codec: Codec, request: Any) -> Call:
        """A call with memory in its request, if there is any and nothing fails."""
        if not self._may_try():
            return Call(self, codec, request, None)
        try:
            if patience := self.memory.loading.patience():
                self.memory.loading.wait(patience)
            future = workers.submit(self.memory.prepare, request, codec=codec, **self._options)
            try:
                prepared = future.result(self._recall_timeout)
            finally:
                future.cancel()  # What nobody waits for any more need not begin.
        except Exception as error:  # noqa: BLE001  memory never breaks the chat, whatever an embedder or a codec raises
            return self._without(codec, request, error)
        return self._with(codec, prepared)

    async def abefore(self, codec: Codec, request: Any) -> Call:
        """As `before`, and never on the event loop."""
        if not self._may_try():
            return Call(self, codec, request, None)
        try:
            if patience := self.memory.loading.patience():
                await self.memory.loading.await_(patience)
            future = workers.submit(self.memory.prepare, request, codec=codec, **self._options)
            prepared = await asyncio.wait_for(asyncio.wrap_future(future), self._recall_timeout)
        except Exception as error:  # noqa: BLE001  as above
            return self._without(codec, request, error)
        return self._with(codec, prepared)

    def _may_try(self) -> bool:
        outer = _inside.get()
        return (outer is None or not outer.under_way) and self.memory.breaker.allows()

    def _with(self, codec: Codec, prepared: Prepared) -> Call:
        self.memory.breaker.succeeded()
        return Call(self, codec, prepared.request, prepared)

    def _without(self, codec: Codec, request: Any, error: Exception) -> Call:
        if isinstance(error, TimeoutError | concurrent.futures.TimeoutError):
            error = RecallTimeoutError(
                f"recall took longer than {self._recall_timeout} s", limit=float(self._recall_timeout)
            )
        self.fail(error, doing="recalling")
        return Call(self, codec, request, None)

    # ---------------------------------------------------------------- after the reply

    def capture(self, prepared: Prepared, text: str | None, *, complete: bool) -> None:
        """Remembers both sides; never raises, but where the policy says so."""
        try:
            self._submit(prepared, text, complete).result(CAPTURE_SECONDS)
        except Exception as error:  # noqa: BLE001  memory never breaks the chat
            self.fail(error, doing="remembering")

    async def acapture(self, prepared: Prepared, text: str | None, *, complete: bool) -> None:
        """As `capture`, and never on the event loop. Cancelled or not, what was begun is written."""
        future = self._submit(prepared, text, complete)
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), CAPTURE_SECONDS)
        except Exception as error:  # noqa: BLE001  memory never breaks the chat
            self.fail(error, doing="remembering")

    def capture_later(self, prepared: Prepared, text: str | None, *, complete: bool) -> None:
        """Begins to remember, where nobody can wait for it: a stream that was dropped without being closed."""
        try:
            self._submit(prepared, text, complete)
        except RuntimeError:
            # The interpreter is ending and starts no more threads: here it is, or nowhere.
            try:
                self.memory.capture(prepared, self._kept(text, complete), complete=complete)
            except Exception as error:  # noqa: BLE001  nobody is left to hear of it but the log
                log.warning("memory failed while remembering (%s); the process is ending", type(error).__name__)

    def _kept(self, text: str | None, complete: bool) -> str | None:
        return text if complete or self._keep_partial else None

    def _submit(self, prepared: Prepared, text: str | None, complete: bool) -> concurrent.futures.Future[Any]:
        text = self._kept(text, complete)
        return workers.submit_for(self.memory.breaker, self.memory.capture, prepared, text, complete=complete)

    def fail(self, error: Exception, *, doing: str) -> None:
        """Counts and logs a failure; raises it where the policy says so."""
        # What is about this one user or this one text says nothing about the store: it must not pause the others. A
        # mismatch is a user who was moved to an embedder that this process does not have.
        counts = not isinstance(error, _NOT_THE_STORE)
        self.memory.breaker.failed(error, doing=doing, counts=counts, quiet=self._on_error != "warn")
        if self._on_error == "raise":
            raise error


class Call:
    """One request on its way, and its reply. Used once.

    Attributes:
        request: what to send.
        prepared: what was put into it; None where memory stays out of it.
        under_way: whether what runs in this call's context is inside of the request.
    """

    def __init__(self, injector: Injector, codec: Codec, request: Any, prepared: Prepared | None) -> None:
        self.request = request
        self.prepared = prepared if prepared is not None and prepared.captures else None
        self._injector = injector
        self._codec = codec
        self._texts: list[str] = []
        self._calls = self._refused = self._ended = self._broken = self._captured = False
        self.under_way = False
        self._token: Token[Call | None] | None = None

    def __enter__(self) -> Call:
        self.under_way = True
        self._token = _inside.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.under_way = False
        if self._token is not None:
            _inside.reset(self._token)

    @property
    def text(self) -> str:
        """What the assistant has said so far."""
        return "".join(self._texts)

    def after(self, response: Any) -> None:
        """Remembers both sides of a whole reply; committed when this returns."""
        self._take(response, whole=True)
        self.end()

    async def aafter(self, response: Any) -> None:
        """As `after`, and never on the event loop."""
        self._take(response, whole=True)
        await self.aend()

    def tee(self, events: Iterator[Any]) -> Tee:
        """The events of a streamed reply as they come; both sides are remembered when it ends, however it ends."""
        return Tee(events, self)

    def atee(self, events: AsyncIterator[Any]) -> AsyncTee:
        """As `tee`, for an async stream."""
        return AsyncTee(events, self)

    def streamed(self, events: Iterator[Any]) -> Iterator[Any]:
        """As `tee`, for a stream whose request goes out when it is first read: if that fails, nothing is remembered."""
        with self:
            first = next(events, _END)
        yield from self.tee(_resumed(first, events))

    async def astreamed(self, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """As `streamed`, for an async stream."""
        with self:
            first = await anext(events, _END)
        tee = self.atee(_aresumed(first, events))
        try:
            async for event in tee:
                yield event
        finally:
            await tee.aclose()

    def see(self, event: Any) -> None:
        """Takes note of one event of a streamed reply."""
        self._take(event, whole=False)

    def end(self, *, broken: bool = False) -> None:
        """The reply is over; `broken` where it stopped before its end. Only the first call counts."""
        if (outcome := self._outcome(broken=broken)) is not None:
            self._injector.capture(*outcome[:2], complete=outcome[2])

    async def aend(self, *, broken: bool = False) -> None:
        """As `end`, and never on the event loop."""
        if (outcome := self._outcome(broken=broken)) is not None:
            await self._injector.acapture(*outcome[:2], complete=outcome[2])

    def drop(self) -> None:
        """The reply is over, and nobody can wait."""
        if (outcome := self._outcome(broken=True)) is not None:
            self._injector.capture_later(*outcome[:2], complete=outcome[2])

    def _take(self, said: Any, *, whole: bool) -> None:
        if self.prepared is None or self._captured:
            return
        try:
            piece = self._codec.reply(said) if whole else self._codec.event(said)
        except Exception as error:  # noqa: BLE001  an event that the codec does not know must not end the stream
            log.debug("a piece of a reply could not be read (%s)", type(error).__name__)
            piece = Piece()
        self._texts.append(piece.text)
        self._calls |= piece.calls
        self._refused |= piece.refused
        self._ended |= piece.ended
        self._broken |= piece.broken

    def _outcome(self, *, broken: bool) -> tuple[Prepared, str | None, bool] | None:
        if self.prepared is None or self._captured:
            return None
        self._captured = True
        text = self.text
        says = bool(text.strip()) and not self._calls and not self._refused
        return self.prepared, text if says else None, self._ended or not (broken or self._broken)


_END = object()


def _resumed(first: Any, events: Iterator[Any]) -> Iterator[Any]:
    if first is not _END:
        yield first
        yield from events


async def _aresumed(first: Any, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    if first is not _END:
        yield first
        async for event in events:
            yield event


class Tee:
    """A stream's events, passed on as they are. Closing it, an error or letting go of it ends the reply."""

    def __init__(self, events: Iterator[Any], call: Call) -> None:
        self._events = events
        self._call = call

    def __iter__(self) -> Tee:
        return self

    def __next__(self) -> Any:
        try:
            event = next(self._events)
        except StopIteration:
            self._call.end()
            raise
        except BaseException:
            self._call.end(broken=True)
            raise
        self._call.see(event)
        return event

    def close(self) -> None:
        """Ends the reply here."""
        try:
            close = getattr(self._events, "close", None)
            if close is not None:
                close()
        finally:
            self._call.end(broken=True)

    def __del__(self) -> None:
        self._call.drop()


class AsyncTee:
    """As `Tee`, for an async stream."""

    def __init__(self, events: AsyncIterator[Any], call: Call) -> None:
        self._events = events
        self._call = call

    def __aiter__(self) -> AsyncTee:
        return self

    async def __anext__(self) -> Any:
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            await self._call.aend()
            raise
        except BaseException:
            # Cancelled, perhaps: what is begun here is written all the same.
            await self._call.aend(broken=True)
            raise
        self._call.see(event)
        return event

    async def aclose(self) -> None:
        """Ends the reply here."""
        try:
            close = getattr(self._events, "aclose", None)
            if close is not None:
                await close()
        finally:
            await self._call.aend(broken=True)

    def __del__(self) -> None:
        self._call.drop()
