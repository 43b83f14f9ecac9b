"""LlamaIndex: a chat memory for its agents and chat engines, with what the user ever said behind their latest words.

    memory = RememberingBuffer.over(store.user("alice"), session="s1")
    SimpleChatEngine.from_defaults(llm=llm, memory=memory)        # or: await agent.run("hi", memory=memory)

It is LlamaIndex's own `ChatMemoryBuffer`: what it keeps of the chat has no block in it, only what `get` gives for a
call of the model has. Both sides are remembered when the reply is put, once a turn, also of a tool loop. One object is
one chat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memlayer.codec import Message, Piece
from memlayer.errors import MissingExtraError
from memlayer.injector import Injector
from memlayer.wrapping import one_user

try:
    from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ToolCallBlock
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.memory import ChatMemoryBuffer
except ImportError as error:
    raise MissingExtraError('llama-index is missing: pip install "memlayer-sdk[llama-index]"') from error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from memlayer.aio import AsyncUserMemory
    from memlayer.injector import Call
    from memlayer.memory import UserMemory

__all__ = ["ChatMessages", "RememberingBuffer"]


class ChatMessages:
    """The codec of a list of `ChatMessage`, and of the one that answers it."""

    def messages(self, request: list[ChatMessage]) -> list[Message]:
        return [Message(_ROLES.get(one.role, "tool"), one.content or "", place) for place, one in enumerate(request)]

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
        called = any(isinstance(block, ToolCallBlock) for block in response.blocks)
        calls = called or bool(response.additional_kwargs.get("tool_calls"))
        return Piece(text=response.content or "", calls=calls, ended=True)

    def event(self, event: Any) -> Piece:
        return Piece()


_ROLES: Mapping[Any, Any] = {
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
}


class RememberingBuffer(ChatMemoryBuffer):
    """LlamaIndex's buffer of one chat, with one user's memory behind it. Get one from `over`."""

    _injector: Injector = PrivateAttr()
    _under_way: Any = PrivateAttr(default=None)

    @classmethod
    def over(
        cls,
        memory: UserMemory | AsyncUserMemory,
        *,
        session: str | None = None,
        token_limit: int = 30_000,
        **options: Any,
    ) -> RememberingBuffer:
        """A new chat.

        Args:
            memory: the user's.
            session: the conversation, or None.
            token_limit: how much of the chat LlamaIndex sends at most, without the blocks.
            options: as `Injector` takes them.

        Raises:
            InvalidInputError: not the memory of one user.
        """
        made = cls(token_limit=token_limit)
        made._injector = Injector(one_user(memory), session=session, **options)
        return made

    def get(self, input: str | None = None, initial_token_count: int = 0, **kwargs: Any) -> list[ChatMessage]:
        """What goes to the model: the chat, with memory in it."""
        messages = super().get(input, initial_token_count=initial_token_count, **kwargs)
        call: Call = self._injector.before(CHAT, messages)
        self._under_way = call
        found: list[ChatMessage] = call.request
        return found

    def put(self, message: ChatMessage) -> None:
        """Adds a message to the chat; a reply ends the turn, and both sides are remembered."""
        super().put(message)
        if (call := self._answered_by(message)) is not None:
            call.after(message)

    async def aput(self, message: ChatMessage) -> None:
        """As `put`, and never on the event loop."""
        await super().aput(message)
        if (call := self._answered_by(message)) is not None:
            await call.aafter(message)

    def _answered_by(self, message: ChatMessage) -> Call | None:
        """The call that this message is the reply to; None for anything that does not end a turn."""
        said = CHAT.reply(message)
        if message.role != MessageRole.ASSISTANT or said.calls or not said.text.strip():
            return None
        call: Call | None = self._under_way
        self._under_way = None
        return call


CHAT = ChatMessages()
