"""LlamaIndex with memory: its own engines and agents, over a model that keeps what it was given."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms.function_calling import FunctionCallingLLM

from memlayer.adapters.llama_index import RememberingBuffer
from memlayer.errors import InvalidInputError
from memlayer.prompt import is_block

# llama-index's own agents read names that pydantic has deprecated; seen with 0.14.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecationWarning")

FACT = "I am allergic to peanuts"
QUESTION = "What about peanuts, can I eat them?"
REPLY = "Better not, no peanuts."
BOTH = [("user", QUESTION), ("assistant", REPLY)]


class Model(FunctionCallingLLM):
    """Keeps what it was given; calls a tool first, where it is told to."""

    calls: int = 0
    given: list[Any]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_function_calling_model=True, model_name="m")

    def chat(self, messages, **kwargs):
        self.given.append(list(messages))
        if self.calls:
            self.calls -= 1
            block = ToolCallBlock(tool_call_id="1", tool_name="weather", tool_kwargs={"city": "Lisbon"})
            return ChatResponse(message=ChatMessage(role="assistant", blocks=[block]))
        return ChatResponse(message=ChatMessage(role="assistant", content=REPLY), delta=REPLY)

    async def achat(self, messages, **kwargs):
        return self.chat(messages)

    def stream_chat(self, messages, **kwargs):
        yield self.chat(messages)

    async def astream_chat(self, messages, **kwargs):
        async def gen():
            yield self.chat(messages)

        return gen()

    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text=REPLY)

    async def acomplete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text=REPLY)

    def stream_complete(self, prompt, formatted=False, **kwargs):
        yield CompletionResponse(text=REPLY)

    async def astream_complete(self, prompt, formatted=False, **kwargs):
        raise NotImplementedError

    def _prepare_chat_with_tools(self, tools, user_msg=None, chat_history=None, **kwargs):
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg)
        return {"messages": messages}

    def get_tool_calls_from_response(self, response, error_on_no_tool_call=True, **kwargs):
        from llama_index.core.llms.llm import ToolSelection

        return [
            ToolSelection(tool_id=block.tool_call_id, tool_name=block.tool_name, tool_kwargs=block.tool_kwargs)
            for block in response.message.blocks
            if isinstance(block, ToolCallBlock)
        ]


def weather(city: str) -> str:
    """The weather of a city."""
    return f"peanut rain in {city}"


@pytest.fixture
def peanuts(alice):
    alice.remember(FACT, session="monday")
    return alice


def said(memory, session="s1"):
    return [(turn.role, turn.text) for turn in memory.history(session=session)]


def blocks(messages):
    return [block.text for message in messages for block in message.blocks if is_block(getattr(block, "text", ""))]


def chat(engine):
    return str(engine.chat(QUESTION))


def achat(engine):
    return str(asyncio.run(engine.achat(QUESTION)))


@pytest.mark.parametrize("way", [chat, achat])
def test_a_chat_engine_injects_once_captures_once_and_asks_once(peanuts, embedder, way):
    """One block behind the user's words; one turn of each side; one recall; nothing of it in the chat's own history."""
    model, memory = Model(given=[]), RememberingBuffer.over(peanuts, session="s1")
    assert way(SimpleChatEngine.from_defaults(llm=model, memory=memory)) == REPLY
    [given] = model.given
    assert len(blocks(given)) == 1
    assert FACT in blocks(given)[0]
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert blocks(memory.get_all()) == []


@pytest.mark.parametrize("calls", [0, 1])
def test_an_agent_is_one_turn(peanuts, embedder, calls):
    """With a tool loop too: the same block in each request, one recall, the user's turn once, and the reply."""
    model, memory = Model(given=[], calls=calls), RememberingBuffer.over(peanuts, session="s1")

    async def main():
        agent = FunctionAgent(tools=[weather], llm=model, streaming=False)
        return str(await agent.run(QUESTION, memory=memory))

    assert asyncio.run(main()) == REPLY
    assert len(model.given) == calls + 1
    assert [len(blocks(given)) for given in model.given] == [1] * (calls + 1)
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert blocks(memory.get_all()) == []


def test_two_users_never_see_each_others_words(store, peanuts):
    """Twenty chats at once; no request has a word of the other's."""
    store.user("bob").remember("Bob keeps bees and says buzz")
    models = {}

    async def one(number):
        name = ("alice", "bob")[number % 2]
        memory = RememberingBuffer.over(store.user(name), session=f"{number}", recall_timeout=60)
        models[number] = Model(given=[])
        await SimpleChatEngine.from_defaults(llm=models[number], memory=memory).achat(f"{name} {number} asks")

    async def main():
        await asyncio.gather(*(one(number) for number in range(20)))

    asyncio.run(main())
    for number, model in models.items():
        text = str(model.given)
        assert ("buzz" in text) == bool(number % 2)
        assert (FACT in text) != bool(number % 2)


def test_a_failing_memory_does_not_break_the_chat(peanuts, store):
    """The request goes out as it came; and a missing user is an error at once."""
    model, memory = Model(given=[]), RememberingBuffer.over(peanuts, session="s1")
    store.close()
    assert chat(SimpleChatEngine.from_defaults(llm=model, memory=memory)) == REPLY
    assert blocks(model.given[0]) == []
    with pytest.raises(InvalidInputError):
        RememberingBuffer.over(None)
