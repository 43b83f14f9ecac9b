"""LiteLLM's streams, of half a dozen types: each stays what it is, and takes note of what passes through it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memlayer.injector import Call

__all__ = ["is_stream", "remembering"]


def is_stream(response: Any) -> bool:
    """Whether a reply comes event by event."""
    return hasattr(type(response), "__next__") or hasattr(type(response), "__anext__")


def remembering(call: Call, stream: Any) -> Any:
    """The same stream, which remembers what passes through it."""
    if call.prepared is None:
        return stream
    kind: Any = type(stream)
    try:
        vars(stream)["_memlayer_call"] = call
        stream.__class__ = _remembering_type(kind)
    except TypeError:  # A generator, whose class cannot be changed.
        return call.atee(stream) if hasattr(type(stream), "__anext__") else call.tee(stream)
    return stream


@functools.lru_cache(maxsize=64)
def _remembering_type(kind: Any) -> type[Any]:
    """The same type with notes taken. Bounded, because LiteLLM defines some of its stream types anew for each call."""

    def following(self: Any) -> Any:
        call: Call = self._memlayer_call
        try:
            event = kind.__next__(self)
        except BaseException as end:
            call.end(broken=not isinstance(end, StopIteration))
            raise
        call.see(event)
        return event

    async def afollowing(self: Any) -> Any:
        call: Call = self._memlayer_call
        try:
            event = await kind.__anext__(self)
        except BaseException as end:
            await call.aend(broken=not isinstance(end, StopAsyncIteration))
            raise
        call.see(event)
        return event

    def close(self: Any) -> None:
        try:
            kind.close(self)
        finally:
            self._memlayer_call.end(broken=True)

    async def aclose(self: Any) -> None:
        try:
            await kind.aclose(self)
        finally:
            await self._memlayer_call.aend(broken=True)

    def let_go(self: Any) -> None:
        self._memlayer_call.drop()
        getattr(kind, "__del__", lambda _: None)(self)

    own = {"__next__": following, "__anext__": afollowing, "close": close, "aclose": aclose}
    kept = {name: method for name, method in own.items() if hasattr(kind, name)}
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**named, **kept, "__del__": let_go})
