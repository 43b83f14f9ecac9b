"""Anthropic's messages: `wrap(Anthropic(), memory)`, sync and async, and the clients for Bedrock, Vertex and Foundry.

A block is a text block at the end of the latest message of the user's, behind the results of tools that must come
first. A message of nothing but results of tools is none of the user's. `cache_control` stays where the caller put it.
With a `thread`, where Anthropic keeps messages and system prompt, nothing is added; both sides are remembered. The tool
runner, which has a thread by default where the SDK knows them, has none here, so that it has memory.
The SDK's memory tool is in `memlayer.adapters.anthropic_memory_tool`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

from memlayer.adapters.stainless import remembering
from memlayer.adapters.stainless_replies import field, plain
from memlayer.codec import Message, Piece, content_text, text_parts

if TYPE_CHECKING:
    from memlayer.adapters.stainless import Codecs
    from memlayer.injector import Injector

__all__ = ["MESSAGES", "AnthropicMessages", "wrap"]


def wrap(client: Any, injector: Injector) -> Any:
    """A client of the same type with memory; the one that is passed in is left as it is."""
    return remembering(client, injector, _CODECS, _Unthreaded)


class AnthropicMessages:
    """The body of a request to `/v1/messages`."""

    def messages(self, request: Mapping[str, Any]) -> list[Message]:
        return [_message(message, place) for place, message in enumerate(_listed(request))]

    def insert(self, request: Mapping[str, Any], blocks: Mapping[int, str]) -> dict[str, Any]:
        messages = _listed(request)
        for place, block in blocks.items():
            message = messages[place]
            messages[place] = {**message, "content": [*text_parts(message.get("content")), _text(block)]}
        return {**request, "messages": messages}

    def instruct(self, request: Mapping[str, Any], block: str) -> dict[str, Any] | None:
        if self.is_stateful(request):
            return None
        return {**request, "system": [*text_parts(request.get("system")), _text(block)]}

    def is_stateful(self, request: Mapping[str, Any]) -> bool:
        return request.get("thread") is not None

    def reply(self, response: Any) -> Piece:
        content = field(response, "content") or []
        text = "".join(field(block, "text") or "" for block in content if field(block, "type") == "text")
        stopped = _stopped(field(response, "stop_reason"))
        called = any(field(block, "type") == "tool_use" for block in content)
        return Piece(text=text, calls=stopped.calls or called, refused=stopped.refused, ended=True)

    def event(self, event: Any) -> Piece:
        kind = field(event, "type")
        if kind == "content_block_delta":
            delta = field(event, "delta")
            return Piece(text=field(delta, "text") or "") if field(delta, "type") == "text_delta" else Piece()
        if kind == "content_block_start":
            block = field(event, "content_block")
            text = field(block, "text") if field(block, "type") == "text" else ""
            return Piece(text=text or "", calls=field(block, "type") == "tool_use")
        if kind == "message_delta":
            return _stopped(field(field(event, "delta"), "stop_reason"))
        return Piece(ended=kind == "message_stop")


class _Unthreaded:
    """A client whose tool runner sends the whole conversation, as `thread=False` has it do, unless told otherwise."""

    @cached_property
    def beta(self) -> Any:
        beta = super().beta  # type: ignore[misc]
        run = getattr(beta.messages, "tool_runner", None)
        if run is not None and "thread" in inspect.signature(run).parameters:

            @wraps(run)
            def unthreaded(*args: Any, **params: Any) -> Any:
                return run(*args, **{"thread": False, **params})

            beta.messages.tool_runner = unthreaded
        return beta


def _listed(request: Mapping[str, Any]) -> list[Any]:
    """A copy of the list; what is no list is no conversation."""
    messages = request.get("messages")
    return [plain(message) for message in messages] if isinstance(messages, list | tuple) else []


def _message(message: Mapping[str, Any], place: int) -> Message:
    content = message.get("content")
    blocks = [] if isinstance(content, str) else [plain(block) for block in content or []]
    text = content if isinstance(content, str) else content_text(blocks)
    role = message.get("role")
    if role == "user" and not text.strip() and any(block.get("type") == "tool_result" for block in blocks):
        return Message(role="tool", text="", place=place)
    return Message(role=role if role in ("assistant", "system") else "user", text=text, place=place)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _stopped(reason: Any) -> Piece:
    # "pause_turn": the program sends the reply back, and the model goes on with it.
    return Piece(calls=reason in ("tool_use", "pause_turn"), refused=reason == "refusal")


MESSAGES = AnthropicMessages()
_CODECS: Codecs = (("/v1/messages", MESSAGES),)
