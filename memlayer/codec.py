"""What the injector asks of a provider: pure functions on its requests and its replies.

A codec knows one wire format and nothing of memory. It reads a request into neutral messages, puts blocks of text at
given places of a copy, and reads the reply's text, whole or event by event. A new provider is one of these and the few
lines that hang it into the provider's client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MESSAGES", "Codec", "Message", "Messages", "Piece"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a request, as every provider has it.

    Attributes:
        role: "user" is what a person said; a result of a tool is "tool", also where the provider sends it in the
            user's role.
        text: its own text, parts joined by a line break; "" where it has none (an image, a tool call). Reasoning is
            not text.
        place: where it stands in the request, in the codec's own numbers; what `Codec.insert` takes.
    """

    role: Literal["user", "assistant", "tool", "system"]
    text: str
    place: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A reply, or one event of a streamed one.

    Attributes:
        text: what the assistant says in it; of several choices or candidates the first one's.
        calls: the model calls a tool, so the turn goes on with another request.
        refused: a refusal, or cut off by a content filter: nothing to remember.
        ended: the provider says that the reply is whole.
        broken: the provider says that it failed in the middle of the reply.
    """

    text: str = ""
    calls: bool = False
    refused: bool = False
    ended: bool = False
    broken: bool = False


class Codec(Protocol):
    """Reads and writes one wire format. Nothing that is passed in is ever changed."""

    def messages(self, request: Any) -> list[Message]:
        """The conversation, oldest first; [] where the request is no conversation."""
        ...

    def insert(self, request: Any, blocks: Mapping[int, str]) -> Any:
        """A copy of the request with each block as a text part of its own, behind all that the message at that place
        holds. What is not touched may be shared with the request that was passed in."""
        ...

    def instruct(self, request: Any, block: str) -> Any:
        """A copy with the block at the end of the system prompt or the instructions of this one request; None where
        the provider has no such place."""
        ...

    def is_stateful(self, request: Any) -> bool:
        """Whether the provider keeps what is sent in the messages and adds to it (a thread, a conversation): then a
        block in them would stay with the provider."""
        ...

    def reply(self, response: Any) -> Piece:
        """A whole reply."""
        ...

    def event(self, event: Any) -> Piece:
        """One event of a streamed reply; an empty piece for what says nothing."""
        ...


class Messages:
    """The chat format that most know: a list of `{"role": ..., "content": ...}`, the content a str or text parts.

    For clients that nobody has wrapped yet: `UserMemory.prepare` takes it as it is. The reply is a str.
    """

    def messages(self, request: list[Any]) -> list[Message]:
        return [
            Message(
                role=_ROLES.get(message.get("role"), "user"), text=content_text(message.get("content")), place=place
            )
            for place, message in enumerate(request)
        ]

    def insert(self, request: list[Any], blocks: Mapping[int, str]) -> list[Any]:
        copy = list(request)
        for place, block in blocks.items():
            message = request[place]
            copy[place] = {**message, "content": [*text_parts(message.get("content")), {"type": "text", "text": block}]}
        return copy

    def instruct(self, request: list[Any], block: str) -> list[Any]:
        first = next((place for place, one in enumerate(request) if one.get("role") in ("system", "developer")), None)
        if first is None:
            return [{"role": "system", "content": block}, *request]
        return self.insert(request, {first: block})

    def is_stateful(self, request: list[Any]) -> bool:
        return False

    def reply(self, response: str) -> Piece:
        return Piece(text=response, ended=True)

    def event(self, event: str) -> Piece:
        return Piece(text=event)


_ROLES: Mapping[Any, Literal["user", "assistant", "tool", "system"]] = {
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "system": "system",
    "developer": "system",
}

_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})


def content_text(content: Any) -> str:
    """The text of a message's content, a str or parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else []
    return "\n".join(
        part if isinstance(part, str) else part["text"]
        for part in parts
        if isinstance(part, str) or (part.get("type") in _TEXT_TYPES and isinstance(part.get("text"), str))
    )


def text_parts(content: Any, *, kind: str = "text") -> list[Any]:
    """A message's content as a list of parts; a str becomes one text part."""
    if isinstance(content, str):
        return [{"type": kind, "text": content}] if content else []
    return list(content or [])


MESSAGES = Messages()
