"""LlamaIndex: a chat memory for its agents and chat engines that knows what the user ever said.

    memory = RememberingMemory.from_defaults(alice, session="s1")
    SimpleChatEngine.from_defaults(llm=llm, memory=memory)        # or: await agent.run("hi", memory=memory)
    memory = RememberingMemory.from_defaults(alice, chat=Memory.from_defaults(memory_blocks=[...]))

It stands around the memory that keeps the chat, LlamaIndex's buffer or another one. The blocks are in what it gives for
a call of the model, never in what is kept. Both sides are remembered when the reply is put, once a turn, also of a tool
loop. One object is one chat.

Different here: an engine that asks for the chat before it adds the question (with a retriever, say) gets the block as a
message of the user's of its own, right before the question. An agent with an `initial_state` writes that into the last
text of the chat, so it needs `placement="system"`. A turn without a reply is remembered when the next one begins, or
the chat is let go of. A chat that was read back from a saved context has no user, and raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memlayer.adapters.llama_index_messages import CHAT, role_of, waits
from memlayer.errors import InvalidInputError, MissingExtraError
from memlayer.injector import Injector
from memlayer.wrapping import one_user

try:
    from llama_index.core.base.llms.types import ChatMessage, MessageRole
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.memory import BaseMemory, ChatMemoryBuffer
except ImportError as error:
    raise MissingExtraError('llama-index is missing: pip install "memlayer-sdk[llama-index]"') from error

if TYPE_CHECKING:
    from memlayer.aio import AsyncUserMemory
    from memlayer.injector import Call
    from memlayer.memory import UserMemory

__all__ = ["RememberingMemory"]

TOKEN_LIMIT = 30_000
"""How much of a chat LlamaIndex sends at most where its caller brings no memory; without the blocks."""


class RememberingMemory(BaseMemory):
    """LlamaIndex's memory of one chat, with one user's memory behind it. Get one from `from_defaults`."""

    _injector: Injector | None = PrivateAttr(default=None)
    _chat: BaseMemory | None = PrivateAttr(default=None)
    # The request of the turn that waits for its reply.
    _call: Any = PrivateAttr(default=None)

    @classmethod
    def from_defaults(
        cls,
        memory: UserMemory | AsyncUserMemory | None = None,
        *,
        chat: BaseMemory | None = None,
        session: str | None = None,
        **options: Any,
    ) -> RememberingMemory:
        """A chat.

        Args:
            memory: the user's.
            chat: what keeps the chat; a new `ChatMemoryBuffer` where it is None.
            session: the conversation, or None.
            options: as `Injector` takes them.

        Raises:
            InvalidInputError: not the memory of one user.
        """
        made = cls()
        made._injector = Injector(one_user(memory), session=session, **options)  # type: ignore[arg-type]
        made._chat = chat if chat is not None else ChatMemoryBuffer.from_defaults(token_limit=TOKEN_LIMIT)
        return made

    @classmethod
    def class_name(cls) -> str:
        return "RememberingMemory"

    @property
    def tokenizer_fn(self) -> Any:
        """How the chat's own memory counts; chat engines look for it."""
        return getattr(self._parts[1], "tokenizer_fn")  # noqa: B009  not every memory has one

    def get(self, input: Any = None, **kwargs: Any) -> list[ChatMessage]:
        """What goes to the model: the chat, with memory in it."""
        injector, chat = self._parts
        request, question = _request(chat.get(input=input, **kwargs), input)
        return self._given(injector.before(CHAT, request), question)

    async def aget(self, input: Any = None, **kwargs: Any) -> list[ChatMessage]:
        injector, chat = self._parts
        request, question = _request(await chat.aget(input=input, **kwargs), input)
        return self._given(await injector.abefore(CHAT, request), question)

    def get_all(self, **kwargs: Any) -> list[ChatMessage]:
        """What is kept of the chat."""
        return self._parts[1].get_all(**kwargs)

    async def aget_all(self, **kwargs: Any) -> list[ChatMessage]:
        return await self._parts[1].aget_all(**kwargs)

    def put(self, message: ChatMessage) -> None:
        """Adds a message to the chat; a reply ends the turn, and both sides are remembered."""
        self.put_messages([message])

    async def aput(self, message: ChatMessage) -> None:
        await self.aput_messages([message])

    def put_messages(self, messages: list[ChatMessage]) -> None:
        """Adds messages to the chat; the last one may be the reply."""
        self._parts[1].put_messages(messages)
        if messages and (call := self._answered_by(messages[-1])) is not None:
            call.after(messages[-1])

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        await self._parts[1].aput_messages(messages)
        if messages and (call := self._answered_by(messages[-1])) is not None:
            await call.aafter(messages[-1])

    def set(self, messages: list[ChatMessage]) -> None:
        """Begins the chat anew with these messages."""
        self._leave()
        self._parts[1].set(messages)

    async def aset(self, messages: list[ChatMessage]) -> None:
        self._leave()
        await self._parts[1].aset(messages)

    def reset(self) -> None:
        """Empties the chat; nothing that is remembered goes with it."""
        self._leave()
        self._parts[1].reset()

    async def areset(self) -> None:
        self._leave()
        await self._parts[1].areset()

    def __del__(self) -> None:
        self._leave()

    @property
    def _parts(self) -> tuple[Injector, BaseMemory]:
        if self._injector is None or self._chat is None:
            raise InvalidInputError("this chat has no user's memory: get one from RememberingMemory.from_defaults")
        return self._injector, self._chat

    def _given(self, call: Call, question: ChatMessage | None) -> list[ChatMessage]:
        messages: list[ChatMessage] = list(call.request)
        if question is not None:
            self._leave_unless(question)
        if self._call is None and (question is not None or waits(messages)):
            self._call = call
        if question is None:
            return messages
        # The engine adds the question itself.
        added = messages.pop().blocks[len(question.blocks) :]
        return [*messages, ChatMessage(role=MessageRole.USER, blocks=added)] if added else messages

    def _answered_by(self, message: ChatMessage) -> Call | None:
        """The request that this message is the reply to, if it is one."""
        role = role_of(message)
        if role == "user":
            self._leave_unless(message)
        if role != "assistant" or CHAT.reply(message).calls:
            return None
        call: Call | None = self._call
        self._call = None
        return call

    def _leave_unless(self, question: ChatMessage) -> None:
        """Another question ends the turn; the same one again is the same turn."""
        prepared = self._call.prepared if self._call is not None else None
        if prepared is None or prepared.text.strip() != (question.content or "").strip():
            self._leave()

    def _leave(self) -> None:
        """The turn gets no reply."""
        call, self._call = self._call, None
        if call is not None:
            call.drop()


def _request(messages: list[ChatMessage], input: Any) -> tuple[list[ChatMessage], ChatMessage | None]:
    """The chat with its question, and that question where it is not in the chat yet."""
    if not input or waits(messages):
        return messages, None
    question = input if isinstance(input, ChatMessage) else ChatMessage(role=MessageRole.USER, content=input)
    return [*messages, question], question
