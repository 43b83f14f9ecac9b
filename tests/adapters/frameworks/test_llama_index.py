"""LlamaIndex with memory: its own engines and agents, over a model that keeps what it was given."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from itertools import pairwise
from typing import Any

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ImageBlock,
    LLMMetadata,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.memory import ChatMemoryBuffer, Memory, StaticMemoryBlock
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context
from pydantic import Field

from memlayer import aio, workers
from memlayer.adapters.llama_index import RememberingMemory
from memlayer.adapters.llama_index_messages import CHAT
from memlayer.errors import InvalidInputError
from memlayer.prompt import is_block

# llama-index's own agents read names that pydantic has deprecated; seen with 0.14.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecationWarning")

FACT = "I am allergic to peanuts"
QUESTION = "What about peanuts, can I eat them?"
REPLY = "Better not, no peanuts."
BOTH = [("user", QUESTION), ("assistant", REPLY)]


class Model(FunctionCallingLLM):
    """Keeps what it was given; calls a tool first, where it is told to; breaks off, where it is told to."""

    calls: int = 0
    tool: str = "weather"
    arguments: dict[str, Any] = Field(default_factory=lambda: {"city": "Lisbon"})
    reply: str = REPLY
    breaks: bool = False
    given: list[Any] = Field(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_function_calling_model=True, is_chat_model=True, model_name="m")

    def chat(self, messages, **kwargs):
        self.given.append([message.model_copy(deep=True) for message in messages])
        if self.calls:
            self.calls -= 1
            block = ToolCallBlock(tool_call_id="1", tool_name=self.tool, tool_kwargs=self.arguments)
            return ChatResponse(message=ChatMessage(role="assistant", blocks=[block]))
        return ChatResponse(message=ChatMessage(role="assistant", content=self.reply), delta=self.reply)

    async def achat(self, messages, **kwargs):
        return self.chat(messages)

    def stream_chat(self, messages, **kwargs):
        whole = self.chat(messages)

        def words():
            if not whole.delta:
                yield whole
                return
            said = ""
            for word in whole.delta.split(" "):
                if said and self.breaks:
                    raise ConnectionAbortedError
                said += (" " if said else "") + word
                yield ChatResponse(message=ChatMessage(role="assistant", content=said), delta=said[-len(word) - 1 :])

        return words()

    async def astream_chat(self, messages, **kwargs):
        events = self.stream_chat(messages)

        async def words():
            for event in events:
                yield event

        return words()

    def complete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text=self.reply)

    async def acomplete(self, prompt, formatted=False, **kwargs):
        return CompletionResponse(text=self.reply)

    def stream_complete(self, prompt, formatted=False, **kwargs):
        yield CompletionResponse(text=self.reply)

    async def astream_complete(self, prompt, formatted=False, **kwargs):
        raise NotImplementedError

    def _prepare_chat_with_tools(self, tools, user_msg=None, chat_history=None, **kwargs):
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg)
        return {"messages": messages}

    def get_tool_calls_from_response(self, response, error_on_no_tool_call=True, **kwargs):
        return [
            ToolSelection(tool_id=block.tool_call_id, tool_name=block.tool_name, tool_kwargs=block.tool_kwargs)
            for block in response.message.blocks
            if isinstance(block, ToolCallBlock)
        ]


class Shelf(BaseRetriever):
    """Finds the same text for every question."""

    def _retrieve(self, query_bundle):
        return [NodeWithScore(node=TextNode(text="Nuts have fat"), score=1.0)]


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
    """The blocks in messages, with the role of the message that each stands in."""
    return [
        (str(message.role.value), block.text)
        for message in messages
        for block in message.blocks
        if is_block(getattr(block, "text", ""))
    ]


def chat(engine, question=QUESTION):
    return str(engine.chat(question))


def achat(engine, question=QUESTION):
    return str(asyncio.run(engine.achat(question)))


def stream_chat(engine, question=QUESTION):
    response = engine.stream_chat(question)
    thread = response.write_response_to_history_thread
    text = "".join(response.response_gen)
    thread.join()
    return text


def astream_chat(engine, question=QUESTION):
    async def main():
        response = await engine.astream_chat(question)
        task = response.awrite_response_to_history_task
        text = "".join([word async for word in response.async_response_gen()])
        await task
        return text

    return asyncio.run(main())


WAYS = pytest.mark.parametrize("way", [chat, achat, stream_chat, astream_chat])


def asked(agent, memory, question=QUESTION, **options):
    """Runs an agent on one question."""

    async def main():
        return str(await agent.run(question, memory=memory, **options))

    return asyncio.run(main())


@WAYS
def test_a_chat_engine_injects_once_captures_once_and_asks_once(peanuts, embedder, way):
    """One block behind the user's words; one turn of each side; one recall; nothing of it in the chat's own history."""
    model, memory = Model(), RememberingMemory.from_defaults(peanuts, session="s1")
    assert way(SimpleChatEngine.from_defaults(llm=model, memory=memory, system_prompt="Be kind.")) == REPLY
    [given] = model.given
    [(role, block)] = blocks(given)
    assert role == "user"
    assert FACT in block
    assert given[-1].blocks[0].text == QUESTION
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert [message.content for message in memory.get_all()] == [QUESTION, REPLY]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("calls", [0, 1, 2])
def test_an_agent_is_one_turn(peanuts, embedder, calls, streaming):
    """With a tool loop too: the same block in each request, one recall, the user's turn once, and the reply."""
    model, memory = Model(calls=calls), RememberingMemory.from_defaults(peanuts, session="s1")
    assert asked(FunctionAgent(tools=[weather], llm=model, streaming=streaming), memory) == REPLY
    assert len(model.given) == calls + 1
    for earlier, later in pairwise(model.given):
        assert later[: len(earlier)] == earlier
    assert [len(blocks(given)) for given in model.given] == [1] * (calls + 1)
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert blocks(memory.get_all()) == []


def test_an_agent_talks_on(alice, embedder):
    """Each request begins with the one before it, block by block; one recall a turn, both sides of each."""
    for fact in (FACT, "I like almonds", "I live in Lisbon"):
        alice.remember(fact)
    model, memory = Model(), RememberingMemory.from_defaults(alice, session="s1", k=1)
    agent = FunctionAgent(tools=[weather], llm=model)
    questions = (QUESTION, "Do I like almonds or walnuts", "In which city do I live")
    for question in questions:
        asked(agent, memory, question)
    assert embedder.query_calls == 3
    for earlier, later in pairwise(model.given):
        assert later[: len(earlier)] == earlier
    assert [len(blocks(given)) for given in model.given] == [1, 2, 3]
    assert said(alice) == [turn for question in questions for turn in (("user", question), ("assistant", REPLY))]


def test_the_same_words_twice_are_two_turns(peanuts):
    """Who says the same thing again says it a second time."""
    memory = RememberingMemory.from_defaults(peanuts, session="s1")
    engine = SimpleChatEngine.from_defaults(llm=Model(), memory=memory)
    agent = FunctionAgent(tools=[weather], llm=Model())
    chat(engine), asked(agent, memory), asked(agent, memory)
    assert said(peanuts) == BOTH * 3


def test_agents_that_hand_over_are_one_turn(peanuts, embedder):
    """Of a hand-over the user's turn and the last agent's reply are remembered; both have the block."""
    arguments = {"to_agent": "second", "reason": "peanuts"}
    first, second = Model(calls=1, tool="handoff", arguments=arguments), Model()
    agents = [
        FunctionAgent(name="first", description="First.", llm=first, can_handoff_to=["second"]),
        FunctionAgent(name="second", description="Second.", llm=second),
    ]
    memory = RememberingMemory.from_defaults(peanuts, session="s1")
    assert asked(AgentWorkflow(agents=agents, root_agent="first"), memory) == REPLY
    assert blocks(first.given[0]) == blocks(second.given[0])
    assert len(blocks(second.given[0])) == 1
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


# llama-index's own ReAct agent asks for what its workflows have deprecated; seen with 0.14.
@pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning")
def test_a_reasoning_agent(peanuts, embedder):
    """Of a ReAct agent the answer is remembered, and not what it thought."""
    model = Model(reply=f"Thought: I can answer without a tool.\nAnswer: {REPLY}")
    memory = RememberingMemory.from_defaults(peanuts, session="s1")
    assert asked(ReActAgent(tools=[weather], llm=model), memory) == REPLY
    assert len(blocks(model.given[0])) == 1
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


def test_what_a_tool_answers_is_no_reply(peanuts):
    """Where a tool's result ends the run only the user's turn is remembered."""
    memory = RememberingMemory.from_defaults(peanuts, session="s1")
    tool = FunctionTool.from_defaults(weather, return_direct=True)
    assert asked(FunctionAgent(tools=[tool], llm=Model(calls=1)), memory) == "peanut rain in Lisbon"
    assert said(peanuts) == [("user", QUESTION)]


def test_an_agent_with_a_state(peanuts):
    """With placement="system" an agent's state is in each of its requests, and in nothing that is remembered."""
    model, memory = Model(calls=1), RememberingMemory.from_defaults(peanuts, session="s1", placement="system")
    asked(FunctionAgent(tools=[weather], llm=model, initial_state={"mood": "hungry"}), memory)
    assert [[role for role, _ in blocks(given)] for given in model.given] == [["system"]] * 2
    assert ["hungry" in str(given) for given in model.given] == [True, True]
    assert said(peanuts) == BOTH


def with_context(model, memory):
    return ContextChatEngine.from_defaults(retriever=Shelf(), llm=model, memory=memory)


def condensed(model, memory):
    return CondensePlusContextChatEngine.from_defaults(retriever=Shelf(), llm=model, memory=memory)


@WAYS
@pytest.mark.parametrize("engine", [with_context, condensed])
def test_an_engine_that_adds_the_question_later(peanuts, embedder, engine, way):
    """An engine with a retriever has the block right before the question; both sides of each turn are remembered."""
    model, memory = Model(), RememberingMemory.from_defaults(peanuts, session="s1")
    engine = engine(model, memory)
    assert way(engine) == REPLY
    last = model.given[-1]
    assert [role for role, _ in blocks(last)] == ["user"]
    assert is_block(last[-2].content)
    assert last[-1].content == QUESTION
    assert embedder.query_calls == 1
    assert way(engine) == REPLY
    assert said(peanuts) == BOTH * 2
    assert blocks(memory.get_all()) == []
    assert len(memory.get_all()) == 4


@pytest.mark.parametrize("placement", ["ephemeral", "system"])
@pytest.mark.parametrize("prompt", [None, "Be kind."])
def test_placements(peanuts, placement, prompt):
    """A block of one turn only; at the end of the system prompt where that is part of the chat."""
    model, memory = Model(), RememberingMemory.from_defaults(peanuts, session="s1", placement=placement)
    if prompt:
        memory.put(ChatMessage(role="system", content=prompt))
    engine = SimpleChatEngine.from_defaults(llm=model, memory=memory)
    chat(engine), chat(engine, "And what about walnuts and nuts then")
    expected = "user" if placement == "ephemeral" else "system"
    assert [[role for role, _ in blocks(given)] for given in model.given] == [[expected]] * 2
    assert [message.role for message in model.given[0]].count("system") == bool(prompt or placement == "system")
    assert blocks(memory.get_all()) == []


@WAYS
def test_around_another_memory(peanuts, embedder, way):
    """LlamaIndex's `Memory` with its own blocks works within, and keeps nothing of ours."""
    static = StaticMemoryBlock(name="core", static_content=[TextBlock(text="Be kind.")])
    within = ChatMemoryBuffer.from_defaults() if way is stream_chat else Memory.from_defaults(memory_blocks=[static])
    model, memory = Model(), RememberingMemory.from_defaults(peanuts, chat=within, session="s1")

    async def talk():
        engine = SimpleChatEngine.from_defaults(llm=model, memory=memory)
        if way in (chat, achat):
            await engine.achat(QUESTION)
        else:
            response = await engine.astream_chat(QUESTION)
            task = response.awrite_response_to_history_task
            async for _ in response.async_response_gen():
                pass
            await task
        kept = await memory.aget_all()
        store = getattr(within, "sql_store", None)
        if store is not None and store._async_engine is not None:
            await store._async_engine.dispose()
        return kept

    kept = asyncio.run(talk())
    assert len(blocks(model.given[0])) == 1
    assert ("Be kind." in str(model.given[0])) == isinstance(within, Memory)
    assert [message.content for message in kept] == [QUESTION, REPLY]
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


def test_two_users_never_see_each_others_words(store, peanuts):
    """Twenty chats at once; no request has a word of the other's."""
    store.user("bob").remember("Bob keeps bees and says buzz")
    models = [Model() for _ in range(20)]

    async def one(number):
        name = ("alice", "bob")[number % 2]
        memory = RememberingMemory.from_defaults(store.user(name), session=f"{number}", recall_timeout=60)
        if number % 4 < 2:
            await SimpleChatEngine.from_defaults(llm=models[number], memory=memory).achat(f"{name} {number} asks")
        else:
            await FunctionAgent(tools=[weather], llm=models[number]).run(f"{name} {number} asks", memory=memory)

    async def main():
        await asyncio.gather(*(one(number) for number in range(20)))

    asyncio.run(main())
    for number, model in enumerate(models):
        text = str(model.given)
        assert ("buzz" in text) == bool(number % 2)
        assert (FACT in text) != bool(number % 2)
        assert len(said(store.user(("alice", "bob")[number % 2]), f"{number}")) == 2


@WAYS
@pytest.mark.parametrize("failing", ["read", "write"])
def test_a_failing_memory_does_not_break_the_chat(peanuts, store, way, failing):
    """The request goes out as it came where memory cannot be read; the reply comes where it cannot be written."""
    model, memory = Model(), RememberingMemory.from_defaults(peanuts, session="s1", on_error="warn")

    class Closing(Model):
        def chat(self, messages, **kwargs):
            store.close()
            return super().chat(messages, **kwargs)

    if failing == "read":
        store.close()
    else:
        model = Closing()
    assert way(SimpleChatEngine.from_defaults(llm=model, memory=memory)) == REPLY
    assert len(blocks(model.given[0])) == (failing == "write")
    assert not peanuts.health.ok


def test_a_missing_user_is_an_error_at_once(store, alice):
    """Nothing but one user's memory will do, and a chat without one gives and takes nothing."""
    for memory in (None, store, "alice"):
        with pytest.raises(InvalidInputError):
            RememberingMemory.from_defaults(memory)
    without = RememberingMemory()
    for act in (without.get, without.get_all, lambda: without.put(ChatMessage(content="a")), without.reset):
        with pytest.raises(InvalidInputError):
            act()
    RememberingMemory.from_defaults(aio.AsyncUserMemory(alice))


def test_a_saved_context_has_no_user(peanuts):
    """A context that was saved carries no user, and what is read from it raises before the model is asked."""
    model, memory = Model(), RememberingMemory.from_defaults(peanuts, session="s1")
    agent = FunctionAgent(tools=[weather], llm=model)

    async def main():
        ctx = Context(agent)
        await agent.run(QUESTION, ctx=ctx, memory=memory)
        saved = ctx.to_dict()
        assert "<memory-" not in str(saved)
        again = Context.from_dict(agent, saved)
        with pytest.raises(InvalidInputError):
            await agent.run(QUESTION, ctx=again)

    asyncio.run(main())
    assert len(model.given) == 1


@pytest.mark.parametrize("way", [stream_chat, astream_chat])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_stream_keeps_the_users_turn(peanuts, way):
    """What the user said before a stream broke off is remembered with the next turn, and no part of the reply."""
    model, memory = Model(breaks=True), RememberingMemory.from_defaults(peanuts, session="s1")
    engine = SimpleChatEngine.from_defaults(llm=model, memory=memory)
    with contextlib.suppress(ConnectionAbortedError):
        way(engine)
    model.breaks = False
    way(engine, "And what about walnuts then")
    workers.finish(peanuts.breaker, seconds=10)
    assert sorted(said(peanuts)) == sorted([
        ("user", QUESTION), ("user", "And what about walnuts then"), ("assistant", REPLY),
    ])  # fmt: skip


@pytest.mark.parametrize("leave", ["reset", "set", "areset", "aset", "del"])
def test_a_turn_without_a_reply_is_kept_when_the_chat_ends(peanuts, leave):
    """However a chat is left, what the user said last is remembered, once."""
    memory = RememberingMemory.from_defaults(peanuts, session="s1")
    memory.put(ChatMessage(role="user", content=QUESTION))
    memory.get()
    if leave == "del":
        del memory
        gc.collect()
    else:
        left = getattr(memory, leave)(*([[]] if "set" in leave and "re" not in leave else []))
        if leave.startswith("a"):
            asyncio.run(left)
    workers.finish(peanuts.breaker, seconds=10)
    assert said(peanuts) == [("user", QUESTION)]


def test_a_retry_is_one_turn(peanuts, embedder):
    """Who asks the same again after the model has failed has said it once."""
    model = Model()
    memory = RememberingMemory.from_defaults(peanuts, session="s1")

    class Failing(Model):
        def chat(self, messages, **kwargs):
            raise ConnectionError

    with pytest.raises(ConnectionError):
        chat(SimpleChatEngine.from_defaults(llm=Failing(), memory=memory))
    memory.set([])
    assert chat(SimpleChatEngine.from_defaults(llm=model, memory=memory)) == REPLY
    workers.finish(peanuts.breaker, seconds=10)
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


@pytest.mark.parametrize("engine", [with_context, condensed])
def test_a_question_after_a_failed_one(peanuts, engine):
    """Where the model failed the question is kept, and the next one is a turn of its own."""

    class Failing(Model):
        def chat(self, messages, **kwargs):
            raise ConnectionError

    memory = RememberingMemory.from_defaults(peanuts, session="s1")
    with pytest.raises(ConnectionError):
        chat(engine(Failing(), memory), "What about walnuts")
    assert chat(engine(Model(), memory)) == REPLY
    workers.finish(peanuts.breaker, seconds=10)
    assert sorted(said(peanuts)) == sorted([("user", "What about walnuts"), *BOTH])


def test_codec_reads():
    """Who said what: results of tools are nobody's turn, calls have no text."""
    call = ToolCallBlock(tool_call_id="1", tool_name="weather", tool_kwargs={})
    given = [
        ChatMessage(role="system", content="be kind"),
        ChatMessage(role="user", blocks=[TextBlock(text="a"), ImageBlock(image=b"x"), TextBlock(text="b")]),
        ChatMessage(role="assistant", blocks=[call]),
        ChatMessage(role="tool", content="found"),
        ChatMessage(role="chatbot", content="It is"),
    ]
    read = [(message.role, message.text, message.place) for message in CHAT.messages(given)]
    assert read == [
        ("system", "be kind", 0), ("user", "a\nb", 1), ("assistant", "", 2), ("tool", "found", 3),
        ("assistant", "It is", 4),
    ]  # fmt: skip


def test_codec_copies():
    """Nothing that was passed in is changed; images and other parts keep their order."""
    question = ChatMessage(role="user", blocks=[ImageBlock(image=b"x"), TextBlock(text="b")])
    given = [question, ChatMessage(role="assistant", content="c")]
    copy = CHAT.insert(given, {0: "BLOCK"})
    assert copy[0].blocks == [*question.blocks, TextBlock(text="BLOCK")]
    assert len(question.blocks) == 2
    assert copy[1] is given[1]
    told = CHAT.instruct(given, "BLOCK")
    assert (told[0].role, told[0].content, told[1:]) == ("system", "BLOCK", given)
