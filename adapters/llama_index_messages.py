"""The codec of LlamaIndex: a list of `ChatMessage`, and the one that answers it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memlayer.codec import Message, Piece
from memlayer.errors import MissingExtraError

try:
    from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ToolCallBlock
except ImportError as error:
    raise MissingExtraError('llama-index is missing: pip install "memlayer-sdk[llama-index]"') from error

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CHAT", "ChatMessages", "role_of", "waits"]


class ChatMessages:
    """The codec of a list of `ChatMessage`, and of the one that answers it."""

    def messages(self, request: list[ChatMessage]) -> list[Message]:
        return [Message(role=role_of(one), text=one.content or "", place=place) for place, one in enumerate(request)]

    def insert(self, request: list[ChatMessage], blocks: Mapping[int, str]) -> list[ChatMessage]:
        messages = list(request)
        for place, block in blocks.items():
            own = messages[place]
            messages[place] = own.model_copy(update={"blocks": [*own.blocks, TextBlock(text=block)]})
        return messages

    def instruct(self, request: list[ChatMessage], block: str) -> list[ChatMessage]:
        if request and request[0].role == MessageRole.SYSTEM:
            return self.insert(request, {0: block})
        return [ChatMessage(role=MessageRole.SYSTEM, content=block), *request]

    def is_stateful(self, request: list[ChatMessage]) -> bool:
        return False

    def reply(self, response: ChatMessage) -> Piece:
        text = response.content or ""
        if text.startswith("Thought:"):
            text = text.rpartition("Answer:")[2].strip()  # What a ReAct agent keeps is all that it thought.
        more = response.additional_kwargs
        return Piece(
            # What a tool answered in the model's stead is not the assistant's.
            text="" if more.get("tool_call_id") else text,
            calls=any(isinstance(block, ToolCallBlock) for block in response.blocks) or bool(more.get("tool_calls")),
            ended=True,
        )

    def event(self, event: Any) -> Piece:
        return Piece()  # A reply is put whole, also where it is streamed.


def role_of(message: ChatMessage) -> Any:
    """Whose words these are."""
    return _ROLES.get(message.role, "tool")


def waits(messages: list[ChatMessage]) -> bool:
    """Whether the last thing that the user said has no reply yet."""
    for message in reversed(messages):
        role = role_of(message)
        if role == "user" or (role == "assistant" and not CHAT.reply(message).calls):
            return bool(role == "user")
    return False


_ROLES: Mapping[Any, Any] = {
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
}

CHAT = ChatMessages()
