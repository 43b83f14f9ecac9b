"""Google Gen AI: `wrap(genai.Client(), memory)`, Gemini and Vertex, `models` and `chats`, sync and `aio`, all streams.

All of these end in four methods of the SDK's API client, with bodies as JSON; automatic function calling is several
requests for one turn. A block is a text part of the latest content of the user's. With `cached_content`, which has the
system instruction in it, `placement="system"` adds nothing. `interactions`, where Google keeps the conversation, and
`live` are left as they are.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import TYPE_CHECKING, Any

from memlayer.codec import Message, Piece
from memlayer.errors import InvalidInputError, MissingExtraError

try:
    from google.genai import Client
except ImportError as error:
    raise MissingExtraError('Google\'s SDK is missing: pip install "memlayer-sdk[google-genai]"') from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from memlayer.injector import Injector

__all__ = ["CONTENTS", "Contents", "wrap"]


def wrap(client: Any, injector: Injector) -> Any:
    """A client of the same type with memory; the one that is passed in is left as it is.

    Raises:
        InvalidInputError: not a client, but a part of one.
    """
    if not isinstance(client, Client):
        raise InvalidInputError(f"wrap takes a genai.Client, not {type(client).__name__}")
    plain: Any = client._api_client
    own: Any = type(plain)
    kind: Any = _api_kind(own)
    api = kind.__new__(kind)
    # One dict for both: connections, tokens and event loops that one of them opens serve the other as well.
    api.__dict__ = plain.__dict__
    api.memlayer = injector
    new = _borrowing(client, api)
    new._aio = _borrowing(client._aio, api)
    # The caller's client closes its connections when nobody holds it any more.
    new._memlayer_plain, new.memlayer = client, injector
    return new


def _borrowing(owner: Any, api: Any) -> Any:
    """A client like `owner` that speaks through another API client."""
    own: Any = type(owner)
    kind = _client_kind(own)
    new = kind.__new__(kind)
    vars(new).update(_bound_to(api, owner))
    return new


class Contents:
    """The body of a request to `generateContent` and `streamGenerateContent`."""

    def messages(self, request: Mapping[str, Any]) -> list[Message]:
        return [_message(content, place) for place, content in enumerate(_contents(request))]

    def insert(self, request: Mapping[str, Any], blocks: Mapping[int, str]) -> dict[str, Any]:
        contents = _contents(request)
        for place, block in blocks.items():
            content = contents[place]
            contents[place] = {**content, "parts": [*(content.get("parts") or []), {"text": block}]}
        return {**request, "contents": contents}

    def instruct(self, request: Mapping[str, Any], block: str) -> dict[str, Any] | None:
        if request.get("cachedContent"):
            return None
        system = request.get("systemInstruction") or {"role": "user"}
        return {**request, "systemInstruction": {**system, "parts": [*(system.get("parts") or []), {"text": block}]}}

    def is_stateful(self, request: Mapping[str, Any]) -> bool:
        return False

    def reply(self, response: Any) -> Piece:
        said = json.loads(response.body) if response.body else {}
        candidates = said.get("candidates") or []
        first: dict[str, Any] = next((one for one in candidates if not one.get("index")), {})
        parts = (first.get("content") or {}).get("parts") or []
        stopped = first.get("finishReason")
        return Piece(
            text="".join(part["text"] for part in parts if part.get("text") and not part.get("thought")),
            calls=any("functionCall" in part for part in parts),
            refused=stopped in _REFUSALS or bool((said.get("promptFeedback") or {}).get("blockReason")),
            ended=stopped is not None,
        )

    def event(self, event: Any) -> Piece:
        return self.reply(event)


CONTENTS = Contents()

_REFUSALS = frozenset({
    "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "MODEL_ARMOR",
})  # fmt: skip


def _contents(request: Mapping[str, Any]) -> list[Any]:
    contents = request.get("contents")
    return list(contents) if isinstance(contents, list) else [contents] if isinstance(contents, dict) else []


def _message(content: Mapping[str, Any], place: int) -> Message:
    parts = content.get("parts") or []
    texts = [part["text"] for part in parts if part.get("text") and not part.get("thought")]
    if content.get("role") == "model":
        # A streamed reply comes back in as many parts as it came in.
        return Message("assistant", "".join(texts), place)
    if content.get("role") == "function" or (not texts and any("functionResponse" in part for part in parts)):
        return Message("tool", "", place)
    return Message("user", "\n".join(texts), place)


def _bound_to(api: Any, owner: Any) -> dict[str, Any]:
    """The parts of a client, as copies that speak through another API client."""
    plain = owner._api_client
    bound = {}
    for name, part in vars(owner).items():
        if part is plain:
            bound[name] = api
        elif name in ("_aio", "_nextgen_client_instance"):
            bound[name] = part
        elif getattr(part, "_api_client", None) is plain:
            bound[name] = copy.copy(part)
            vars(bound[name])["_api_client"] = api
        else:
            bound[name] = part
    return bound


def _sends_contents(path: str) -> bool:
    return path.partition("?")[0].endswith((":generateContent", ":streamGenerateContent"))


@cache
def _client_kind(own: Any) -> Any:
    return own if hasattr(own, "_memlayer_kind") else _named(own, (_Borrowing, own))


@cache
def _api_kind(own: Any) -> Any:
    return own if issubclass(own, _ApiClient) else _named(own, (_ApiClient, own), __slots__=("memlayer",))


def _named(own: Any, parents: tuple[Any, ...], **more: Any) -> Any:
    return type(own.__name__, parents, {"__module__": own.__module__, "__doc__": own.__doc__, **more})


class _Borrowing:
    """What has its connections from somebody else, and does not close them when it goes."""

    __slots__ = ()
    _memlayer_kind = True

    def __del__(self) -> None:
        pass


class _ApiClient(_Borrowing):
    """Four methods, sync and async, whole and streamed."""

    __slots__ = ()
    memlayer: Injector

    def request(self, http_method: str, path: str, request_dict: Any, http_options: Any = None) -> Any:
        send: Any = super().request  # type: ignore[misc]
        if not _sends_contents(path):
            return send(http_method, path, request_dict, http_options)
        call = self.memlayer.before(CONTENTS, request_dict)
        with call:
            response = send(http_method, path, call.request, http_options)
        call.after(response)
        return response

    def request_streamed(
        self, http_method: str, path: str, request_dict: Any, http_options: Any = None
    ) -> Iterator[Any]:
        send: Any = super().request_streamed  # type: ignore[misc]
        if not _sends_contents(path):
            return send(http_method, path, request_dict, http_options)  # type: ignore[no-any-return]
        call = self.memlayer.before(CONTENTS, request_dict)
        return call.streamed(send(http_method, path, call.request, http_options))

    async def async_request(self, http_method: str, path: str, request_dict: Any, http_options: Any = None) -> Any:
        send: Any = super().async_request  # type: ignore[misc]
        if not _sends_contents(path):
            return await send(http_method, path, request_dict, http_options)
        call = await self.memlayer.abefore(CONTENTS, request_dict)
        with call:
            response = await send(http_method, path, call.request, http_options)
        await call.aafter(response)
        return response

    async def async_request_streamed(
        self, http_method: str, path: str, request_dict: Any, http_options: Any = None
    ) -> AsyncIterator[Any]:
        send: Any = super().async_request_streamed  # type: ignore[misc]
        if not _sends_contents(path):
            return await send(http_method, path, request_dict, http_options)  # type: ignore[no-any-return]
        call = await self.memlayer.abefore(CONTENTS, request_dict)
        return call.astreamed(await send(http_method, path, call.request, http_options))
