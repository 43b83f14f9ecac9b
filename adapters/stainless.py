"""What the SDKs of OpenAI and Anthropic have in common, made by one generator: every path ends in `client.request`.

A client with memory is an object of a subclass that overrides that one method, outside of the SDK's retries. It has the
caller's client's settings and its HTTP pool. Streams keep their type: the iterator inside of them is replaced. What the
SDKs do without `request`, such as a WebSocket, has no memory.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Mapping
from copy import copy
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from memlayer.codec import Codec
    from memlayer.injector import Call, Injector

__all__ = ["Codecs", "field", "plain", "remembering"]

Codecs: TypeAlias = tuple[tuple[str, "Codec"], ...]
"""Which codec reads what is sent to a URL, by the URL's end."""


def remembering(client: Any, injector: Injector, codecs: Codecs) -> Any:
    """A client of the same type with memory; the one that is passed in is left as it is.

    Raises:
        InvalidInputError: not a client, but its class, or a part of one.
    """
    if not hasattr(client, "_client") or not callable(getattr(type(client), "request", None)):
        raise InvalidInputError(f"wrap takes a client, such as OpenAI() or Anthropic(), not {type(client).__name__}")
    own: Any = type(client)
    kind, bound = _kind(own, codecs)
    new = kind.__new__(kind)
    # `client.chat` and its like hold the client that they were made by: each client makes its own.
    vars(new).update((name, value) for name, value in vars(client).items() if name not in bound)
    new.memlayer = injector
    return new


@cache
def _kind(own: Any, codecs: Codecs) -> tuple[Any, frozenset[str]]:
    bound = frozenset(
        name for one in own.__mro__ for name, value in vars(one).items() if isinstance(value, cached_property)
    )
    if issubclass(own, _Remembering):
        return own, bound
    mixin = _AsyncClient if inspect.iscoroutinefunction(own.request) else _Client
    names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(own.__name__, (mixin, own), {**names, "_memlayer_codecs": codecs}), bound


class _Remembering:
    """What sync and async clients share."""

    memlayer: Injector
    _memlayer_codecs: Codecs

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        new = super().copy(*args, **kwargs)  # type: ignore[misc]
        new.memlayer = self.memlayer
        return new

    def with_options(self, *args: Any, **kwargs: Any) -> Any:
        return self.copy(*args, **kwargs)

    def _memlayer_codec(self, options: Any) -> Codec | None:
        if options.method.lower() != "post" or not isinstance(options.json_data, Mapping):
            return None
        url = options.url.partition("?")[0].rstrip("/")
        return next((codec for end, codec in self._memlayer_codecs if url.endswith(end)), None)


class _Client(_Remembering):
    def request(self, cast_to: Any, options: Any, **how: Any) -> Any:
        codec = self._memlayer_codec(options)
        if codec is None:
            return super().request(cast_to, options, **how)  # type: ignore[misc]
        body = _body(options)
        call = self.memlayer.before(codec, body)
        with call:
            response = super().request(cast_to, _with_body(options, call.request), **how)  # type: ignore[misc]
        if call.prepared is not None:
            self._memlayer_take(call, response, streams=bool(how.get("stream")))
        return response

    def _memlayer_take(self, call: Call, response: Any, *, streams: bool) -> None:
        http = _http(response)
        stream = _stream(response if http is None else response.parse()) if streams else None
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


class _AsyncClient(_Remembering):
    async def request(self, cast_to: Any, options: Any, **how: Any) -> Any:
        codec = self._memlayer_codec(options)
        if codec is None:
            return await super().request(cast_to, options, **how)  # type: ignore[misc]
        body = _body(options)
        call = await self.memlayer.abefore(codec, body)
        with call:
            response = await super().request(cast_to, _with_body(options, call.request), **how)  # type: ignore[misc]
        if call.prepared is not None:
            await self._memlayer_take(call, response, streams=bool(how.get("stream")))
        return response

    async def _memlayer_take(self, call: Call, response: Any, *, streams: bool) -> None:
        http = _http(response)
        parsed = response
        if streams and http is not None:
            parsed = response.parse()
            parsed = await parsed if inspect.isawaitable(parsed) else parsed
        stream = _stream(parsed) if streams else None
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


# ---------------------------------------------------------------- requests


def _body(options: Any) -> dict[str, Any]:
    """What is sent, `extra_body` in its place; lists where the caller gave what can be read once only."""
    body = {**options.json_data, **(options.extra_json or {})}
    for name in ("messages", "input"):
        value = body.get(name)
        if isinstance(value, Iterable) and not isinstance(value, str | bytes | list | Mapping):
            body[name] = list(value)
    return {name: value for name, value in body.items() if type(value).__name__ != "Omit"}


def _with_body(options: Any, body: Any) -> Any:
    return options.model_copy(update={"json_data": body, "extra_json": None})


# ---------------------------------------------------------------- replies


def _http(response: Any) -> Any:
    """The HTTP response of a raw answer, or None where the SDK has read it already."""
    if hasattr(response, "is_stream_consumed"):
        return response
    return getattr(response, "http_response", None)


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
    close = response.close

    async def closing() -> None:
        try:
            await close()
        finally:
            await _aend(call, http)

    response.close = closing


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

    So does the generator of events, from inside, when it has read all bytes: that is not the end. When nobody holds it
    any more, the tee around it has ended the reply, or does so, without waiting in a finalizer.
    """
    close, this = http.close, weakref.ref(events)

    def closing() -> None:
        try:
            close()
        finally:
            if getattr(this(), "gi_running", True) is False:
                call.end(broken=True)

    http.close = closing


def _aend_at_close(call: Call, http: Any, events: Any) -> None:
    close, this = http.aclose, weakref.ref(events)

    async def closing() -> None:
        try:
            await close()
        finally:
            if getattr(this(), "ag_running", True) is False:
                await call.aend(broken=True)

    http.aclose = closing


# ---------------------------------------------------------------- models and dicts


def field(thing: Any, name: str) -> Any:
    """A value by its name from a dict, or from a model of the SDK; None where there is none."""
    return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)


def plain(thing: Any) -> Any:
    """A model of the SDK as the dict that is sent of it; anything else as it is."""
    return thing.model_dump(mode="json", exclude_unset=True) if hasattr(thing, "model_dump") else thing
