"""Ollama: `wrap(Client(), memory)` and `wrap(AsyncClient(), memory)`, chat and generate, whole and streamed.

A message's content is one str here, so a block follows the user's words after an empty line. For `generate` the prompt
is the user's message; with `context`, which is the conversation so far, the block goes into `system`. Prompts that fill
a gap (`suffix`) or are sent as they are (`raw`) are left alone.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from memlayer.codec import Message, Messages, Piece
from memlayer.errors import InvalidInputError, MissingExtraError

try:
    from ollama import AsyncClient, Client
except ImportError as error:
    raise MissingExtraError('Ollama\'s SDK is missing: pip install "memlayer-sdk[ollama]"') from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from memlayer.codec import Codec
    from memlayer.injector import Injector

__all__ = ["CHAT", "GENERATE", "Chat", "Generate", "wrap"]


def wrap(client: Any, injector: Injector) -> Any:
    """A client of the same type with memory; the one that is passed in is left as it is.

    Raises:
        InvalidInputError: not a client; the module's own functions belong to one that nobody else can be given.
    """
    if not isinstance(client, Client | AsyncClient):
        raise InvalidInputError("wrap takes a client of Ollama: wrap(ollama.Client(), memory)")
    own: Any = type(client)
    kind: Any = _kind(own)
    new = kind.__new__(kind)
    vars(new).update(vars(client))
    new.memlayer = injector
    return new


class Chat:
    """The body of a request to `/api/chat`."""

    def messages(self, request: Mapping[str, Any]) -> list[Message]:
        return _LIST.messages(request.get("messages") or [])

    def insert(self, request: Mapping[str, Any], blocks: Mapping[int, str]) -> dict[str, Any]:
        messages = list(request["messages"])
        for place, block in blocks.items():
            messages[place] = {**messages[place], "content": _joined(messages[place].get("content"), block)}
        return {**request, "messages": messages}

    def instruct(self, request: Mapping[str, Any], block: str) -> dict[str, Any]:
        messages = request["messages"]
        first = next((place for place, one in enumerate(messages) if one.get("role") == "system"), None)
        if first is not None:
            return self.insert(request, {first: block})
        return {**request, "messages": [{"role": "system", "content": block}, *messages]}

    def is_stateful(self, request: Mapping[str, Any]) -> bool:
        return False

    def reply(self, response: Any) -> Piece:
        return self.event(response)

    def event(self, event: Any) -> Piece:
        message = event.message
        return Piece(text=message.content or "", calls=bool(message.tool_calls), ended=bool(event.done))


class Generate:
    """The body of a request to `/api/generate`."""

    def messages(self, request: Mapping[str, Any]) -> list[Message]:
        if request.get("suffix") or request.get("raw") or not request.get("prompt"):
            return []
        return [Message("user", request["prompt"], 0)]

    def insert(self, request: Mapping[str, Any], blocks: Mapping[int, str]) -> dict[str, Any]:
        return {**request, "prompt": _joined(request["prompt"], blocks[0])}

    def instruct(self, request: Mapping[str, Any], block: str) -> dict[str, Any]:
        return {**request, "system": _joined(request.get("system"), block)}

    def is_stateful(self, request: Mapping[str, Any]) -> bool:
        return bool(request.get("context"))

    def reply(self, response: Any) -> Piece:
        return self.event(response)

    def event(self, event: Any) -> Piece:
        return Piece(text=event.response or "", ended=bool(event.done))


_LIST = Messages()
CHAT = Chat()
GENERATE = Generate()
_CODECS: Mapping[str, Codec] = {"/api/chat": CHAT, "/api/generate": GENERATE}


def _joined(text: str | None, block: str) -> str:
    return f"{text}\n\n{block}" if text else block


@cache
def _kind(own: Any) -> Any:
    if issubclass(own, _Client | _AsyncClient):
        return own
    mixin = _AsyncClient if issubclass(own, AsyncClient) else _Client
    names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(own.__name__, (mixin, own), names)


class _Client:
    """Every call of the sync client ends in `_request`, with the body as JSON."""

    memlayer: Injector

    def _request(self, cls: Any, *args: Any, stream: bool = False, **kwargs: Any) -> Any:
        send: Any = super()._request  # type: ignore[misc]
        codec = _CODECS.get(args[1]) if len(args) > 1 else None
        if codec is None:
            return send(cls, *args, stream=stream, **kwargs)
        call = self.memlayer.before(codec, kwargs["json"])
        if stream:
            return call.streamed(send(cls, *args, stream=True, **{**kwargs, "json": call.request}))
        with call:
            response = send(cls, *args, **{**kwargs, "json": call.request})
        call.after(response)
        return response


class _AsyncClient:
    """Every call of the async client ends in `_request`, with the body as JSON."""

    memlayer: Injector

    async def _request(self, cls: Any, *args: Any, stream: bool = False, **kwargs: Any) -> Any:
        send: Any = super()._request  # type: ignore[misc]
        codec = _CODECS.get(args[1]) if len(args) > 1 else None
        if codec is None:
            return await send(cls, *args, stream=stream, **kwargs)
        call = await self.memlayer.abefore(codec, kwargs["json"])
        if stream:
            return call.astreamed(await send(cls, *args, stream=True, **{**kwargs, "json": call.request}))
        with call:
            response = await send(cls, *args, **{**kwargs, "json": call.request})
        await call.aafter(response)
        return response
