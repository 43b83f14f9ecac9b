"""The three formats that LiteLLM speaks on its own side, whichever provider is behind it.

`Chat` is OpenAI's chat completions, `Responses` OpenAI's responses, `AnthropicMessages` Anthropic's messages. A request
is the dict of keyword arguments, or the body that the gateway was sent; what is in it and what comes back may be dicts
or LiteLLM's objects. Nothing in here needs LiteLLM.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from memlayer.codec import MESSAGES, Message, Piece, content_text, text_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["AnthropicMessages", "Chat", "Responses"]

Request = dict[str, Any]


class Chat:
    """OpenAI's chat completions."""

    def messages(self, request: Request) -> list[Message]:
        return MESSAGES.messages([_plain(message) for message in _listed(request.get("messages"))])

    def insert(self, request: Request, blocks: Mapping[int, str]) -> Request:
        messages = [
            _plain(message) if place in blocks else message for place, message in enumerate(request["messages"])
        ]
        return {**request, "messages": MESSAGES.insert(messages, blocks)}

    def instruct(self, request: Request, block: str) -> Request | None:
        return {**request, "messages": MESSAGES.instruct([_plain(message) for message in request["messages"]], block)}

    def is_stateful(self, request: Request) -> bool:
        return False

    def reply(self, response: Any) -> Piece:
        return self._piece(response, "message")

    def event(self, event: Any) -> Piece:
        return self._piece(event, "delta")

    def _piece(self, said: Any, name: str) -> Piece:
        # Of several choices the first one; in a stream they come mixed, and a chunk of the usage has none.
        choice = next((one for one in _get(said, "choices") or [] if not _get(one, "index")), None)
        message, finish = _get(choice, name), _get(choice, "finish_reason")
        return Piece(
            text=content_text(_plain(_get(message, "content"))),
            calls=bool(_get(message, "tool_calls") or _get(message, "function_call")),
            refused=finish == "content_filter" or bool(_get(message, "refusal")),
            ended=bool(finish),
        )


class Responses:
    """OpenAI's responses. What the server keeps (`previous_response_id`, `conversation`) gets no block in its input."""

    def messages(self, request: Request) -> list[Message]:
        given = request.get("input")
        if isinstance(given, str):
            return [Message("user", given, 0)]
        return [self._message(_plain(item), place) for place, item in enumerate(_listed(given))]

    def _message(self, item: Any, place: int) -> Message:
        kind = item.get("type") or "message"
        if kind == "message":
            (found,) = MESSAGES.messages([item])
            return Message(found.role, found.text, place)
        # Calls of tools, reasoning and the like belong to the assistant, and what the tools gave to nobody.
        return Message("tool" if kind.endswith("_output") else "assistant", "", place)

    def insert(self, request: Request, blocks: Mapping[int, str]) -> Request:
        given = request["input"]
        items = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
        for place, block in blocks.items():
            item = _plain(items[place])
            parts = text_parts(item.get("content"), kind="input_text")
            items[place] = {**item, "content": [*parts, {"type": "input_text", "text": block}]}
        return {**request, "input": items}

    def instruct(self, request: Request, block: str) -> Request | None:
        instructions = request.get("instructions")
        return {**request, "instructions": f"{instructions}\n\n{block}" if instructions else block}

    def is_stateful(self, request: Request) -> bool:
        return bool(request.get("previous_response_id") or request.get("conversation"))

    def reply(self, response: Any) -> Piece:
        items = _get(response, "output") or []
        parts = [
            part for item in items if _get(item, "type") == "message" for part in _plain(_get(item, "content")) or []
        ]
        return Piece(
            text="".join(part["text"] for part in parts if part.get("type") == "output_text"),
            calls=any(_get(item, "type") in ("function_call", "custom_tool_call") for item in items),
            refused=any(part.get("type") == "refusal" for part in parts) or _failed(response),
            ended=True,
        )

    def event(self, event: Any) -> Piece:
        kind = _get(event, "type")
        if kind == "response.output_text.delta":
            return Piece(text=_get(event, "delta") or "")
        if kind in ("response.completed", "response.incomplete"):
            whole = self.reply(_get(event, "response"))  # Its text has been there before.
            return Piece(calls=whole.calls, refused=whole.refused, ended=True)
        if kind in ("response.refusal.delta", "response.refusal.done"):
            return Piece(refused=True)
        return Piece(broken=kind in ("response.failed", "error"))


class AnthropicMessages:
    """Anthropic's messages. One of these reads one stream: that comes as bytes, which may be cut anywhere."""

    def __init__(self) -> None:
        self._rest = b""

    def messages(self, request: Request) -> list[Message]:
        return [
            Message("tool" if _gives_results(content) else found.role, found.text, place)
            for place, message in enumerate(map(_plain, _listed(request.get("messages"))))
            for content in [message.get("content")]
            for found in MESSAGES.messages([message])
        ]

    def insert(self, request: Request, blocks: Mapping[int, str]) -> Request:
        return Chat().insert(request, blocks)

    def instruct(self, request: Request, block: str) -> Request | None:
        system = request.get("system")
        if system is None or isinstance(system, str):
            return {**request, "system": f"{system}\n\n{block}" if system else block}
        return {**request, "system": [*system, {"type": "text", "text": block}]}

    def is_stateful(self, request: Request) -> bool:
        return False

    def reply(self, response: Any) -> Piece:
        parts = _plain(_get(response, "content")) or []
        return Piece(
            text="".join(part["text"] for part in parts if part.get("type") == "text"),
            calls=any(part.get("type") == "tool_use" for part in parts),
            refused=_get(response, "stop_reason") == "refusal",
            ended=True,
        )

    def event(self, event: Any) -> Piece:
        events = self._decoded(event) if isinstance(event, bytes | str) else [_plain(event)]
        pieces = [self._piece(one) for one in events]
        return Piece(
            text="".join(piece.text for piece in pieces),
            calls=any(piece.calls for piece in pieces),
            refused=any(piece.refused for piece in pieces),
            ended=any(piece.ended for piece in pieces),
        )

    def _decoded(self, data: bytes | str) -> Iterable[Any]:
        received = self._rest + (data.encode() if isinstance(data, str) else data)
        *whole, self._rest = received.replace(b"\r\n", b"\n").split(b"\n\n")
        lines = (line for event in whole for line in event.split(b"\n") if line.startswith(b"data:"))
        return [json.loads(line.removeprefix(b"data:")) for line in lines if line.strip() != b"data: [DONE]"]

    def _piece(self, event: Any) -> Piece:
        kind, delta = event.get("type"), event.get("delta") or {}
        if kind == "content_block_delta":
            return Piece(text=delta.get("text") or "" if delta.get("type") == "text_delta" else "")
        if kind == "content_block_start":
            return Piece(calls=(event.get("content_block") or {}).get("type") == "tool_use")
        if kind == "message_delta":
            return Piece(refused=delta.get("stop_reason") == "refusal")
        return Piece(broken=kind == "error", ended=kind == "message_stop")


def _gives_results(content: Any) -> bool:
    """Whether a message in the user's role holds results of tools, and no word of the user's."""
    parts = content if isinstance(content, list) else []
    return any(part.get("type") == "tool_result" for part in parts) and content_text(parts).strip() == ""


def _failed(response: Any) -> bool:
    details = _get(_get(response, "incomplete_details"), "reason")
    return bool(_get(response, "status") == "failed" or details == "content_filter")


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _plain(value: Any) -> Any:
    """The same as dicts and lists; LiteLLM's objects are pydantic models."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value


def _listed(value: Any) -> list[Any]:
    # Anything else (a generator, say) would be used up by reading it.
    return list(value) if isinstance(value, list | tuple) else []
