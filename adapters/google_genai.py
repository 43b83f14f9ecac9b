"""Google Gen AI: `wrap(genai.Client(), memory)`, Gemini and Vertex, `models` and `chats`, sync and `aio`, all streams.

All of these end in four methods of the SDK's API client, with bodies as JSON; automatic function calling and automatic
continuation are several requests for one turn. A block is a text part of the latest content of the user's. With
`cached_content`, which has the system instruction in it, `placement="system"` adds nothing. `interactions`, where
Google keeps the conversation, and `live` are left as they are.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

from memlayer.adapters.google_genai_contents import CONTENTS, GOES_ON, Contents, body, first_candidate
from memlayer.errors import InvalidInputError, MissingExtraError

try:
    from google.genai.client import AsyncClient, Client
except ImportError as error:
    raise MissingExtraError('Google\'s SDK is missing: pip install "memlayer-sdk[google-genai]"') from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from memlayer.injector import Call, Injector

__all__ = ["CONTENTS", "Contents", "wrap"]

# How many replies that were cut are kept for their rest, for each client.
_MOST_TOKENS = 100


def wrap(client: Any, injector: Injector) -> Any:
    """A client of the same type with memory; the one that is passed in is left as it is.

    Raises:
        InvalidInputError: not a client, but its class, or a part of one.
    """
    if not isinstance(client, Client | AsyncClient):
        raise InvalidInputError(f"wrap takes a genai.Client or its aio, not {type(client).__name__}")
    plain: Any = client._api_client
    own: Any = type(plain)
    kind: Any = _api_kind(own)
    api = kind.__new__(kind)
    # One dict for both: connections, tokens and event loops that one of them opens serve the other as well.
    api.__dict__ = plain.__dict__
    api.memlayer, api._memlayer_plain, api._memlayer_said = injector, plain, {}
    new = _borrowing(client, api)
    if isinstance(client, Client):
        new._aio = _borrowing(client._aio, api)
    return new


def _borrowing(owner: Any, api: Any) -> Any:
    """A client like `owner` whose models, and the chats made of them, speak through another API client."""
    own: Any = type(owner)
    kind = _client_kind(own)
    new = kind.__new__(kind)
    vars(new).update(vars(owner))
    new._models = copy.copy(owner._models)
    new._models._api_client = api
    # The caller's client closes its connections when nobody holds it any more.
    new._memlayer_plain, new.memlayer = owner, api.memlayer
    return new


def _sends_contents(path: str) -> bool:
    return path.partition("?")[0].endswith((":generateContent", ":streamGenerateContent"))


@cache
def _client_kind(own: Any) -> Any:
    return own if issubclass(own, _Borrowing) else _named(own, (_Borrowing, own))


@cache
def _api_kind(own: Any) -> Any:
    return _named(own, (_ApiClient, own), __slots__=("_memlayer_plain", "_memlayer_said", "memlayer"))


def _named(own: Any, parents: tuple[Any, ...], **more: Any) -> Any:
    names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(own.__name__, parents, {**names, **more})


class _Borrowing:
    """What has its connections from somebody else, and does not close them when it goes."""

    __slots__ = ()

    def __del__(self) -> None:
        pass


class _ApiClient(_Borrowing):
    """Four methods, sync and async, whole and streamed."""

    __slots__ = ()
    memlayer: Injector
    # What a reply said before it broke off, by the token with which the SDK asks for the rest.
    _memlayer_said: dict[str, str]

    def request(self, http_method: str, path: str, request_dict: Any, http_options: Any = None) -> Any:
        send: Any = super().request  # type: ignore[misc]
        if not _sends_contents(path):
            return send(http_method, path, request_dict, http_options)
        call = self.memlayer.before(CONTENTS, request_dict)
        hop = _Hop(self._memlayer_said, call, request_dict)
        with call:
            response = send(http_method, path, call.request, http_options)
        call.after(response)
        hop.note(response)
        return response

    def request_streamed(
        self, http_method: str, path: str, request_dict: Any, http_options: Any = None
    ) -> Iterator[Any]:
        send: Any = super().request_streamed  # type: ignore[misc]
        if not _sends_contents(path):
            return send(http_method, path, request_dict, http_options)  # type: ignore[no-any-return]
        call = self.memlayer.before(CONTENTS, request_dict)
        hop = _Hop(self._memlayer_said, call, request_dict)
        return call.streamed(hop.noted(send(http_method, path, call.request, http_options)))

    async def async_request(self, http_method: str, path: str, request_dict: Any, http_options: Any = None) -> Any:
        send: Any = super().async_request  # type: ignore[misc]
        if not _sends_contents(path):
            return await send(http_method, path, request_dict, http_options)
        call = await self.memlayer.abefore(CONTENTS, request_dict)
        hop = _Hop(self._memlayer_said, call, request_dict)
        with call:
            response = await send(http_method, path, call.request, http_options)
        await call.aafter(response)
        hop.note(response)
        return response

    async def async_request_streamed(
        self, http_method: str, path: str, request_dict: Any, http_options: Any = None
    ) -> AsyncIterator[Any]:
        send: Any = super().async_request_streamed  # type: ignore[misc]
        if not _sends_contents(path):
            return await send(http_method, path, request_dict, http_options)  # type: ignore[no-any-return]
        call = await self.memlayer.abefore(CONTENTS, request_dict)
        hop = _Hop(self._memlayer_said, call, request_dict)
        with call:
            events = await send(http_method, path, call.request, http_options)
        return call.astreamed(hop.anoted(events))


class _Hop:
    """One of the requests that make up a long reply: the SDK asks on with a token where it was cut.

    Args:
        said: what replies said up to their tokens.
        call: this request, which is told what was said before it.
        request: its body.
    """

    def __init__(self, said: dict[str, str], call: Call, request: Mapping[str, Any]) -> None:
        self._said = said
        self._call = call
        self._goes_on = False
        token = request.get("continuationToken")
        if token is not None:
            before = said.get(token)
            call.see(GOES_ON if before is None else {"candidates": [{"content": {"parts": [{"text": before}]}}]})

    def note(self, response: Any) -> None:
        """Takes note of a response, or of an event that the call has seen."""
        if '"continuationToken"' in (response.body or ""):
            token = first_candidate(body(response)).get("continuationToken")
            for oldest in list(self._said)[: len(self._said) - _MOST_TOKENS]:
                self._said.pop(oldest, None)
            self._goes_on = token is not None
            if token is not None and self._call.prepared is not None:
                self._said[token] = self._call.text
        elif '"finishReason"' in (response.body or ""):
            self._goes_on = False

    def noted(self, events: Iterator[Any]) -> Iterator[Any]:
        """The events as they come. Where they end without the end of the reply, the SDK asks on."""
        try:
            for event in events:
                yield event
                self.note(event)
        except Exception:  # goes on to the caller; no `finally`: a reader who leaves has no end to note
            self.end()
            raise
        self.end()

    async def anoted(self, events: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """As `noted`, for an async stream."""
        try:
            async for event in events:
                yield event
                self.note(event)
        except Exception:  # goes on to the caller; no `finally`: a reader who leaves has no end to note
            self.end()
            raise
        self.end()

    def end(self) -> None:
        """What the call has heard is not all of the reply, if a token was the last thing in it."""
        if self._goes_on:
            self._call.see(GOES_ON)
