"""The replies of the SDKs of OpenAI and Anthropic, in every form that a caller may ask for: whole, raw, streamed.

None of them changes its type. A stream gets another iterator inside; a raw answer is looked at where its body is there.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memlayer.injector import Call

__all__ = ["atake", "field", "plain", "take"]


def take(call: Call, response: Any, *, streams: bool) -> None:
    """Has a reply remembered: at once where it is whole, else when the caller is through with it."""
    http = _http(response)
    stream = None
    if streams:
        stream = _stream(response if http is None else _parsed(response))
    if stream is not None:
        events = _events(stream)
        stream._iterator = call.tee(events)
        _end_at_close(call, stream.response, events)
    elif http is None:
        call.after(response)
    elif http.is_closed:
        _end(call, http)
    else:
        _read_at_close(call, response, http)


async def atake(call: Call, response: Any, *, streams: bool) -> None:
    """As `take`, and never on the event loop."""
    http = _http(response)
    stream = None
    if streams:
        parsed = response if http is None else _parsed(response)
        stream = _stream(await parsed if inspect.isawaitable(parsed) else parsed)
    if stream is not None:
        events = _events(stream)
        stream._iterator = call.atee(events)
        _aend_at_close(call, stream.response, events)
    elif http is None:
        await call.aafter(response)
    elif http.is_closed:
        await _aend(call, http)
    else:
        _aread_at_close(call, response, http)


def _http(response: Any) -> Any:
    """The HTTP response of a raw answer, or None where the SDK has read it already."""
    if hasattr(response, "is_stream_consumed"):
        return response
    return getattr(response, "http_response", None)


def _parsed(response: Any) -> Any:
    """The stream that a raw answer makes of itself, which it keeps for the caller."""
    try:
        return response.parse()
    except Exception:  # noqa: BLE001  whatever a parser raises, it is the caller's to see when the caller parses
        return None


def _json(http: Any) -> Any:
    try:
        return http.json()
    except Exception:  # noqa: BLE001  not read, or not JSON: the HTTP package has several errors for that
        return None


def _end(call: Call, http: Any) -> None:
    said = _json(http)
    if said is None:
        call.end(broken=True)
    else:
        call.after(said)


async def _aend(call: Call, http: Any) -> None:
    said = _json(http)
    if said is None:
        await call.aend(broken=True)
    else:
        await call.aafter(said)


def _read_at_close(call: Call, response: Any, http: Any) -> None:
    """The caller reads the body when it wants to, or never: look at it when it is done with the answer."""
    close = response.close

    def closing() -> None:
        try:
            close()
        finally:
            _end(call, http)

    response.close = closing


def _aread_at_close(call: Call, response: Any, http: Any) -> None:
    name = "aclose" if response is http else "close"
    close = getattr(response, name)

    async def closing() -> None:
        try:
            await close()
        finally:
            await _aend(call, http)

    setattr(response, name, closing)


# ---------------------------------------------------------------- streams


def _stream(answer: Any) -> Any:
    return answer if hasattr(answer, "__stream__") and hasattr(answer, "response") else None


def _events(stream: Any) -> Any:
    """The stream's events, by a generator that does not hold the stream: letting go of the stream then ends it."""
    twin = copy(stream)
    vars(twin).pop("_iterator", None)
    return twin.__stream__()


def _end_at_close(call: Call, http: Any, events: Any) -> None:
    """`close()`, the end of a `with`, and the SDK's own streaming helpers all close the HTTP response.

    So does the generator of events, from inside, when it has read all bytes: that is not the end, nor news after it.
    When nobody holds it any more, the tee around it has ended the reply, or does so, without waiting in a finalizer.
    """
    close, this = http.close, weakref.ref(events)

    def closing() -> None:
        try:
            close()
        finally:
            if _waits(this(), "gi"):
                call.end(broken=True)

    http.close = closing


def _waits(generator: Any, kind: str) -> bool:
    """Whether a generator stands before its first event or between two: it is not running, and not over."""
    return getattr(generator, f"{kind}_frame", None) is not None and not getattr(generator, f"{kind}_running")


def _aend_at_close(call: Call, http: Any, events: Any) -> None:
    close, this = http.aclose, weakref.ref(events)

    async def closing() -> None:
        try:
            await close()
        finally:
            if _waits(this(), "ag"):
                await call.aend(broken=True)

    http.aclose = closing


# ---------------------------------------------------------------- models and dicts


def field(thing: Any, name: str) -> Any:
    """A value by its name from a dict, or from a model of the SDK; None where there is none."""
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def plain(thing: Any) -> Any:
    """A model of the SDK as the dict that is sent of it; anything else as it is."""
    return thing.model_dump(mode="json", exclude_unset=True) if hasattr(thing, "model_dump") else thing
