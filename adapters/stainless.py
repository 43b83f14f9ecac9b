"""What the SDKs of OpenAI and Anthropic have in common, made by one generator: every path ends in `client.request`.

A client with memory is an object of a subclass that overrides that one method, outside of the SDK's retries. It has the
caller's client's settings and its HTTP pool. Streams keep their type: the iterator inside of them is replaced. What the
SDKs do without `request`, such as a WebSocket, has no memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from memlayer.adapters.stainless_replies import atake, take
from memlayer.errors import InvalidInputError

if TYPE_CHECKING:
    from memlayer.codec import Codec
    from memlayer.injector import Injector

__all__ = ["Codecs", "remembering"]

Codecs: TypeAlias = tuple[tuple[str, "Codec"], ...]
"""Which codec reads what is sent to a URL, by the URL's end."""


def remembering(client: Any, injector: Injector, codecs: Codecs, *mixins: type) -> Any:
    """A client of the same type with memory; the one that is passed in is left as it is.

    Args:
        client: the caller's.
        injector: its memory.
        codecs: for the requests that have memory; all others are left alone.
        mixins: what else the SDK's clients need.

    Raises:
        InvalidInputError: not a client, but its class, or a part of one.
    """
    if not hasattr(client, "_client") or not callable(getattr(type(client), "request", None)):
        raise InvalidInputError(f"wrap takes a client, such as OpenAI() or Anthropic(), not {type(client).__name__}")
    own: Any = type(client)
    kind, cached = _kind(own, codecs, mixins)
    new = kind.__new__(kind)
    # `client.chat` and its like hold the client that they were made by: each client makes its own. What is a str is a
    # setting that is kept in the same way (the region of Vertex).
    vars(new).update(
        (name, value) for name, value in vars(client).items() if name not in cached or isinstance(value, str)
    )
    new.memlayer = injector
    return new


@cache
def _kind(own: Any, codecs: Codecs, mixins: tuple[type, ...]) -> tuple[Any, frozenset[str]]:
    cached = frozenset(
        name for one in own.__mro__ for name, value in vars(one).items() if isinstance(value, cached_property)
    )
    if issubclass(own, _Remembering):
        return own, cached
    mixin = _AsyncClient if inspect.iscoroutinefunction(own.request) else _Client
    names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(own.__name__, (mixin, *mixins, own), {**names, "_memlayer_codecs": codecs}), cached


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
            take(call, response, streams=bool(how.get("stream")))
        return response


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
            await atake(call, response, streams=bool(how.get("stream")))
        return response


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
