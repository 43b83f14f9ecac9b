"""The agent middleware and the retriever: real agents, LangChain's own OpenAI client, a loopback server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from http.server import ThreadingHTTPServer
from itertools import pairwise

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import RetrieversIntegrationTests
from openai import AsyncOpenAI, OpenAI, OpenAIError

from memlayer import aio, wrap
from memlayer.adapters.langchain import MemoryMiddleware, MemoryRetriever, ModelRequests
from memlayer.errors import InvalidInputError
from memlayer.prompt import is_block
from tests.adapters.loopback import Loopback
from tests.adapters.wires import openai as wire

FACT = "I am allergic to peanuts"
QUESTION = "Which snack with peanuts is good for me"


def look_up(word: str) -> str:
    """Looks a word up."""
    return f"peanuts: {word}"


@pytest.fixture
def serve():
    """Starts a server; gives it and a model that asks it."""
    servers = []

    def start(chatbot, **options):
        # LangChain shares its HTTP clients with the whole process, and each test has an event loop of its own.
        server = Loopback(lambda request: replace(chatbot(request), headers={"connection": "close"}))
        servers.append(server.__enter__())
        return server, ChatOpenAI(
            model=wire.MODEL, base_url=server.url + "/v1", api_key="none", max_retries=0, **options
        )

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def ran(agent, way, question=QUESTION, **options):
    """Runs an agent on one question, one of the ways that there are; its last state's messages."""
    given = question if isinstance(question, dict) else {"messages": [{"role": "user", "content": question}]}
    if way == "invoke":
        return agent.invoke(given, **options)["messages"]
    if way == "stream":
        return list(agent.stream(given, stream_mode=["messages", "values"], **options))[-1][1]["messages"]

    async def run():
        if way == "ainvoke":
            return (await agent.ainvoke(given, **options))["messages"]
        events = [event async for event in agent.astream(given, stream_mode=["messages", "values"], **options)]
        return events[-1][1]["messages"]

    return asyncio.run(run())


WAYS = pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])


def blocks(body):
    """The blocks in a request's body, with the role of the message that each stands in."""
    return [
        (message["role"], part["text"])
        for message in body["messages"]
        for part in (message["content"] if isinstance(message["content"], list) else [{"text": message["content"]}])
        if is_block(part.get("text") or "")
    ]


def turns(memory):
    return [(turn.role, turn.text) for turn in memory.history()]


@WAYS
def test_one_injection_one_capture_one_recall(serve, alice, embedder, way):
    """Each way to run an agent injects once, recalls once, remembers both sides once; the state stays as it was."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Crackers are fine"))
    agent = create_agent(model, middleware=[MemoryMiddleware(alice, session="s1")])
    before = embedder.query_calls
    messages = ran(agent, way)
    assert embedder.query_calls - before == 1
    (body,) = server.bodies
    ((role, block),) = blocks(body)
    assert role == "user"
    assert FACT in block
    assert body["messages"][-1]["content"][0] == {"type": "text", "text": QUESTION}
    assert [message.content for message in messages] == [QUESTION, "Crackers are fine"]
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Crackers are fine")]
    assert [turn.session for turn in alice.history()][1:] == ["s1", "s1"]


@WAYS
def test_tool_loop(serve, alice, embedder, way):
    """Of a tool loop every request has the same block, recall is asked once, and each side is remembered once."""
    alice.remember(FACT)
    server, model = serve(
        wire.Chatbot("Done", tools=[("look_up", {"word": "nut"})], says_with_tools="Let me look that up")
    )
    agent = create_agent(model, [look_up], middleware=[MemoryMiddleware(alice)])
    before = embedder.query_calls
    messages = ran(agent, way)
    assert embedder.query_calls - before == 1
    first, second = server.bodies
    assert blocks(first) == blocks(second)
    assert len(blocks(first)) == 1
    assert second["messages"][: len(first["messages"])] == first["messages"]
    assert [type(message) for message in messages] == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Done")]


def test_conversation_is_replayed(serve, alice, embedder):
    """The messages of each turn begin with those of the turn before it, byte for byte; one recall a turn."""
    for fact in (FACT, "I like almonds", "I live in Lisbon"):
        alice.remember(fact)
    server, model = serve(wire.Chatbot(lambda request: f"Answer {len(request.body['messages'])}"))
    agent = create_agent(model, system_prompt="Be brief.", middleware=[MemoryMiddleware(alice, session="s", k=1)])
    state = {"messages": []}
    before = embedder.query_calls
    for question in (QUESTION, "Do I like almonds or walnuts", "In which city do I live"):
        state["messages"] = ran(agent, "invoke", {"messages": [*state["messages"], HumanMessage(question)]})
    assert embedder.query_calls - before == 3
    bodies = [body["messages"] for body in server.bodies]
    for earlier, later in pairwise(bodies):
        assert later[: len(earlier)] == earlier
    assert [len(blocks(body)) for body in server.bodies] == [1, 2, 3]


@dataclass
class Context:
    """What a run carries."""

    user: str | None = None


@WAYS
def test_user_of_the_run(serve, store, way):
    """A function of the run's context gives the user, and no request carries a word of another one."""
    for user in ("alice", "bob"):
        store.user(user).remember(f"The peanuts of {user}")
    server, model = serve(wire.Chatbot("Yes"))
    middleware = MemoryMiddleware(
        lambda runtime: store.user(runtime.context.user), session=lambda runtime: f"with {runtime.context.user}"
    )
    agent = create_agent(model, middleware=[middleware], context_schema=Context)
    for user in ("alice", "bob"):
        ran(agent, way, context=Context(user))
    for user, other, body in zip(("alice", "bob"), ("bob", "alice"), server.bodies, strict=True):
        ((_, block),) = blocks(body)
        assert user in block
        assert other not in block
        assert [turn.session for turn in store.user(user).history()][1:] == [f"with {user}"] * 2


def test_two_users_at_once(serve, store, monkeypatch):
    """Of 50 runs at once of one agent, for two users, each has the memory of its own user alone."""
    # By default a server lets five connections wait and has the others reset, which the model here does not try again.
    monkeypatch.setattr(ThreadingHTTPServer, "request_queue_size", 128)
    for user in ("alice", "bob"):
        store.user(user).remember(f"The peanuts of {user}")
    server, model = serve(wire.Chatbot("Yes"))
    middleware = MemoryMiddleware(lambda runtime: store.user(runtime.context.user), recall_timeout=30)
    agent = create_agent(model, middleware=[middleware], context_schema=Context)

    async def runs():
        users = ["alice", "bob"] * 25
        given = [{"messages": [HumanMessage(f"{QUESTION}, asks {user} ({n})")]} for n, user in enumerate(users)]
        await asyncio.gather(
            *(agent.ainvoke(one, context=Context(user)) for one, user in zip(given, users, strict=True))
        )

    asyncio.run(runs())
    assert len(server.bodies) == 50
    for body in server.bodies:
        user, other = ("alice", "bob") if "asks alice" in str(body["messages"][-1]) else ("bob", "alice")
        assert f"The peanuts of {user}" in str(body)
        assert other not in str(body)
    for user in ("alice", "bob"):
        assert len(store.user(user)) == 51


@WAYS
def test_missing_user_raises_before_any_request(serve, store, way):
    """Without a user's memory nothing is sent, whatever `on_error` says."""
    server, model = serve(wire.Chatbot())
    for memory in (None, store, "alice"):
        with pytest.raises(InvalidInputError):
            MemoryMiddleware(memory)
        agent = create_agent(model, middleware=[MemoryMiddleware(lambda _, memory=memory: memory, on_error="ignore")])
        with pytest.raises(InvalidInputError):
            ran(agent, way)
    assert server.requests == []


def test_async_memory(serve, alice):
    """The async handle of a user is as good as the sync one."""
    _, model = serve(wire.Chatbot("Noted"))
    agent = create_agent(model, middleware=[MemoryMiddleware(aio.AsyncUserMemory(alice))])
    ran(agent, "ainvoke")
    assert turns(alice) == [("user", QUESTION), ("assistant", "Noted")]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_guard_of_the_inside(serve, alice, embedder, way):
    """Of two middlewares around one model, and a wrapped client within, only the outermost adds and remembers."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Yes"))
    sync = wrap(OpenAI(base_url=server.url + "/v1", api_key="none"), alice)
    later = wrap(AsyncOpenAI(base_url=server.url + "/v1", api_key="none"), alice)
    model = model.model_copy(update={"client": sync.chat.completions, "async_client": later.chat.completions})

    class Again(MemoryMiddleware):
        """Another name: an agent takes each middleware once."""

    agent = create_agent(model, middleware=[MemoryMiddleware(alice), Again(alice)])
    before = embedder.query_calls
    ran(agent, way)
    assert embedder.query_calls - before == 1
    assert len(blocks(server.bodies[0])) == 1
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Yes")]
    if way == "invoke":  # By itself the wrapped client does both: the test can fail.
        model.invoke("What about walnuts then")
        assert len(alice) == 5
    sync.close()
    asyncio.run(later.close())


class Retry(AgentMiddleware):
    """Tries the model a second time."""

    def wrap_model_call(self, request, handler):
        try:
            return handler(request)
        except OpenAIError:
            return handler(request)


@pytest.mark.parametrize("outside", [True, False])
def test_retry(serve, alice, embedder, outside):
    """A retry, around the middleware or inside of it, sends the same block, recalls once and remembers once."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Yes", failures=1))
    middleware = [Retry(), MemoryMiddleware(alice)]
    agent = create_agent(model, middleware=middleware if outside else middleware[::-1])
    before = embedder.query_calls
    ran(agent, "invoke")
    assert embedder.query_calls - before == 1
    assert server.bodies[0] == server.bodies[1]
    assert len(blocks(server.bodies[0])) == 1
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Yes")]


@WAYS
def test_failing_model_leaves_nothing(serve, alice, way):
    """What the model raises reaches the caller, and nothing is remembered."""
    _, model = serve(wire.Chatbot(failures=9))
    with pytest.raises(OpenAIError):
        ran(create_agent(model, middleware=[MemoryMiddleware(alice)]), way)
    assert len(alice) == 0


@WAYS
def test_failing_memory_is_no_obstacle(serve, store, alice, way):
    """A memory that cannot be read or written changes nothing of what the agent says."""
    server, model = serve(wire.Chatbot("Yes"))
    agent = create_agent(model, middleware=[MemoryMiddleware(alice, on_error="ignore")])
    store.close()
    assert ran(agent, way)[-1].content == "Yes"
    assert blocks(server.bodies[0]) == []
    assert not alice.health.ok


def test_refusal_is_not_remembered(serve, alice):
    """Of a refusal and of an answer that a filter cut off, only the user's turn is kept."""
    for chatbot in (wire.Chatbot(refusal="I cannot"), wire.Chatbot("Half of", finish="content_filter")):
        _, model = serve(chatbot)
        ran(create_agent(model, middleware=[MemoryMiddleware(alice)]), "invoke", f"{QUESTION} {chatbot.finish}")
    assert [role for role, _ in turns(alice)] == ["user", "user"]


def test_cancelled_stream_keeps_the_users_turn(serve, alice):
    """An async stream that is cancelled in the middle keeps what the user said, and no part of the answer."""
    began = asyncio.Event()

    class Slow(AgentMiddleware):
        async def awrap_model_call(self, request, handler):
            began.set()
            await asyncio.sleep(60)
            return await handler(request)

    _, model = serve(wire.Chatbot("Never"))
    agent = create_agent(model, middleware=[MemoryMiddleware(alice), Slow()])

    async def cancelled():
        task = asyncio.create_task(agent.ainvoke({"messages": [HumanMessage(QUESTION)]}))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert turns(alice) == [("user", QUESTION)]


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_abandoned_stream_keeps_the_users_turn(serve, alice, way):
    """A reader who leaves after the first token: the user's turn is kept once."""
    _, model = serve(wire.Chatbot("One two three four five"))
    agent = create_agent(model, middleware=[MemoryMiddleware(alice)])
    given = {"messages": [HumanMessage(QUESTION)]}

    async def left():
        events = agent.astream(given, stream_mode="messages")
        await anext(events)
        await events.aclose()

    if way == "astream":
        asyncio.run(left())
    else:
        events = agent.stream(given, stream_mode="messages")
        next(events)
        events.close()
    assert [turn for turn in turns(alice) if turn[0] == "user"] == [("user", QUESTION)]


def test_responses_api(serve, alice):
    """Over the responses API the block is a part of the user's message, and reasoning is no part of the reply."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Crackers", reasoning="Thinking of peanuts"), use_responses_api=True)
    ran(create_agent(model, middleware=[MemoryMiddleware(alice)]), "invoke")
    (message,) = server.bodies[0]["input"]
    own, block = message["content"]
    assert (own["text"], is_block(block["text"])) == (QUESTION, True)
    assert turns(alice)[1:] == [("user", QUESTION), ("assistant", "Crackers")]


def test_stateful_requests_carry_nothing(serve, alice):
    """Where the provider keeps the conversation, no request has a block, and both sides are remembered."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Crackers"), use_responses_api=True, use_previous_response_id=True)
    agent = create_agent(model, middleware=[MemoryMiddleware(alice)])
    messages = ran(agent, "invoke")
    ran(agent, "invoke", {"messages": [*messages, HumanMessage("And which nuts are left for me")]})
    assert server.bodies[1]["previous_response_id"] == "resp_1"
    assert not any("<memory-" in str(body) for body in server.bodies)
    assert [role for role, _ in turns(alice)] == ["user", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("prompt", [None, "Be brief."])
def test_placement_system(serve, alice, prompt):
    """With placement="system" the block ends the system prompt of the request, and the user's message is untouched."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Yes"))
    agent = create_agent(model, system_prompt=prompt, middleware=[MemoryMiddleware(alice, placement="system")])
    ran(agent, "invoke")
    assert [role for role, _ in blocks(server.bodies[0])] == ["system"]
    assert server.bodies[0]["messages"][-1]["content"] == QUESTION


def request(*messages, system=None, **settings):
    return ModelRequest(model=None, messages=list(messages), system_message=system, model_settings=settings)


def test_codec_reads():
    """Who said what: a summary that a middleware wrote and a tool's result are nobody's turn; reasoning is no text."""
    given = request(
        HumanMessage("Summary: ...", additional_kwargs={"lc_source": "summarization"}),
        HumanMessage(["a", {"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": "b"}]),
        AIMessage([{"type": "reasoning"}, {"type": "text", "text": "It "}, {"type": "text", "text": "is"}]),
        ToolMessage("found", tool_call_id="1"),
        SystemMessage("be kind"),
    )
    read = [(message.role, message.text, message.place) for message in ModelRequests().messages(given)]
    assert read == [
        ("system", "Summary: ...", 0), ("user", "a\nb", 1), ("assistant", "It is", 2), ("tool", "found", 3),
        ("system", "be kind", 4),
    ]  # fmt: skip


def test_codec_copies():
    """Nothing that was passed in is changed; images and other parts keep their order, messages their ids."""
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    asked = HumanMessage([image, {"type": "text", "text": "b"}], id="m1")
    given = request(asked, AIMessage("c"), system=SystemMessage("s"))
    copy = ModelRequests().insert(given, {0: "BLOCK"})
    assert copy.messages[0].content == [image, {"type": "text", "text": "b"}, {"type": "text", "text": "BLOCK"}]
    assert copy.messages[0].id == "m1"
    assert copy.messages[1] is given.messages[1]
    assert asked.content == [image, {"type": "text", "text": "b"}]
    told = ModelRequests().instruct(given, "BLOCK")
    assert [part["text"] for part in told.system_message.content] == ["s", "BLOCK"]
    assert given.system_message.content == "s"


def test_codec_stateful():
    """A conversation that the provider keeps is known by its settings, and gets no instructions either."""
    for settings in ({"previous_response_id": "r"}, {"conversation": "c"}):
        assert ModelRequests().is_stateful(request(HumanMessage("a"), **settings))
        assert ModelRequests().instruct(request(HumanMessage("a"), **settings), "BLOCK") is None
    assert not ModelRequests().is_stateful(request(HumanMessage("a")))


def test_codec_reply():
    """The last thing that the assistant says is the reply; calls of tools, refusals and filters are told apart."""
    codec = ModelRequests()
    call = AIMessage("", tool_calls=[{"name": "look_up", "args": {}, "id": "1", "type": "tool_call"}])
    replies = [
        (AIMessage("yes"), ("yes", False, False)),
        (ModelResponse(result=[AIMessage("yes")]), ("yes", False, False)),
        (ModelResponse(result=[call, ToolMessage("x", tool_call_id="1")]), ("", True, False)),
        (AIMessage("no", response_metadata={"stop_reason": "refusal"}), ("no", False, True)),
        (AIMessage("no", response_metadata={"finish_reason": "SAFETY"}), ("no", False, True)),
        (AIMessage("no", response_metadata={"incomplete_details": {"reason": "content_filter"}}), ("no", False, True)),
        (AIMessage([{"type": "refusal", "refusal": "no"}]), ("", False, True)),
        (ModelResponse(result=[]), ("", False, False)),
    ]
    for response, expected in replies:
        piece = codec.reply(response)
        assert (piece.text, piece.calls, piece.refused) == expected


class TestRetriever(RetrieversIntegrationTests):
    """LangChain's own suite for retrievers."""

    @pytest.fixture(autouse=True)
    def _memory(self, alice):
        for word in ("one", "two", "three", "four"):
            alice.remember(f"snack {word}")
        self.memory = alice

    retriever_constructor = MemoryRetriever
    retriever_query_example = "which snack"

    @property
    def retriever_constructor_params(self):
        return {"memory": self.memory}


def test_retriever_documents(alice):
    """A document is a memory's text with its id; its metadata are the memory's own and what is known of it."""
    turn = alice.remember(FACT, session="s1", speaker="Al", metadata={"topic": "food", "role": "forged"})
    alice.remember("I like peanuts", role="assistant")
    retriever = MemoryRetriever(memory=alice, options={"sources": ["user"], "where": {"topic": "food"}})
    (document,) = retriever.invoke("peanuts")
    assert (document.page_content, document.id) == (FACT, turn.id)
    score = document.metadata.pop("score")
    assert 0 < score <= 1
    assert document.metadata == {
        "topic": "food", "role": "user", "speaker": "Al", "session": "s1", "at": turn.at.isoformat(), "source": "user",
    }  # fmt: skip
    assert asyncio.run(retriever.ainvoke("peanuts"))[0].id == turn.id
    assert "UserMemory" not in repr(retriever)


def test_retriever_needs_a_user(store):
    """A retriever over anything else than one user's memory cannot be made."""
    for memory in (None, store, "alice"):
        with pytest.raises(ValueError, match="memory"):
            MemoryRetriever(memory=memory)
