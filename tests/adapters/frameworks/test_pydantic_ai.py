"""The capability: real agents, Pydantic AI's own OpenAI models, a loopback server."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent, BinaryContent, ImageUrl, ModelRetry, TextContent
from pydantic_ai.capabilities import ProcessHistory
from pydantic_ai.exceptions import ContentFilterError, ModelAPIError, UnexpectedModelBehavior
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestContext, ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider

from memlayer import aio, workers, wrap
from memlayer.adapters.pydantic_ai import MemoryCapability, RequestContexts
from memlayer.errors import InvalidInputError
from memlayer.prompt import is_block
from tests.adapters.loopback import Loopback
from tests.adapters.wires import openai as wire

FACT = "I am allergic to peanuts"
QUESTION = "Which snack with peanuts is good for me"

MODELS = {"responses": OpenAIResponsesModel, "chat": OpenAIChatModel}
API = pytest.mark.parametrize("api", list(MODELS))


def look_up(word: str) -> str:
    """Looks a word up."""
    return f"peanuts: {word}"


@pytest.fixture
def serve():
    """Starts a server; gives it and a maker of models that ask it."""
    servers = []

    def start(chatbot, client=lambda client: client):
        # Each run of a test has an event loop of its own.
        server = Loopback(lambda request: replace(chatbot(request), headers={"connection": "close"}))
        servers.append(server.__enter__())

        def model(api="chat", **options):
            asked = client(AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0))
            return MODELS[api](wire.MODEL, provider=OpenAIProvider(openai_client=asked), **options)

        return server, model

    yield start
    for server in servers:
        server.__exit__(None, None, None)


async def run(agent, question, **options):
    return await agent.run(question, **options)


async def run_stream(agent, question, **options):
    async with agent.run_stream(question, **options) as result:
        async for _ in result.stream_text(delta=True):
            pass
    return result


async def stream_events(agent, question, **options):
    async with agent.run_stream_events(question, **options) as events:
        return [event async for event in events][-1].result


async def iterate(agent, question, **options):
    async with agent.iter(question, **options) as steps:
        async for _ in steps:
            pass
    return steps.result


def ran(way, agent, question=QUESTION, **options):
    """Runs an agent on one question, one of the ways that there are."""
    if way == "run_sync":
        with asyncio.Runner() as loop:
            asyncio.set_event_loop(loop.get_loop())
            return agent.run_sync(question, **options)
    ways = {"run": run, "run_stream": run_stream, "run_stream_events": stream_events, "iter": iterate}
    return asyncio.run(ways[way](agent, question, **options))


WAYS = pytest.mark.parametrize("way", ["run", "run_sync", "run_stream", "run_stream_events", "iter"])


def listed(body):
    return body.get("messages") or body["input"]


def blocks(body):
    """The blocks in a request's body, with the role of the message that each stands in."""
    return [
        (item["role"], part["text"])
        for item in listed(body)
        for part in (item.get("content") if isinstance(item.get("content"), list) else [])
        if is_block(part.get("text") or "")
    ]


def turns(memory):
    return [(turn.role, turn.text) for turn in memory.history()]


@API
@WAYS
def test_one_injection_one_capture_one_recall(serve, alice, embedder, api, way):
    """Each way to run an agent injects once, recalls once, remembers both sides once; its messages stay clean."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Crackers are fine"))
    before = embedder.query_calls
    result = ran(way, Agent(model(api), capabilities=[MemoryCapability(alice, session="s1")]))
    assert embedder.query_calls - before == 1
    (body,) = server.bodies
    ((role, block),) = blocks(body)
    assert role == "user"
    assert FACT in block
    assert listed(body)[-1]["content"][0]["text"] == QUESTION
    assert "<memory-" not in result.all_messages_json().decode()
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Crackers are fine")]
    assert [turn.session for turn in alice.history()][1:] == ["s1", "s1"]


@API
@WAYS
def test_tool_loop(serve, alice, embedder, api, way):
    """Of a tool loop every request has the same block, recall is asked once, and each side is remembered once."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Done", tools=[("look_up", {"word": "nut"})]))
    agent = Agent(model(api), tools=[look_up], capabilities=[MemoryCapability(alice)])
    before = embedder.query_calls
    result = ran(way, agent)
    assert embedder.query_calls - before == 1
    first, second = map(listed, server.bodies)
    assert second[: len(first)] == first
    assert [len(blocks(body)) for body in server.bodies] == [1, 1]
    assert "<memory-" not in result.all_messages_json().decode()
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Done")]


@API
def test_conversation_is_replayed(serve, alice, embedder, api):
    """The messages of each turn begin with those of the turn before it, byte for byte; one recall a turn."""
    for fact in (FACT, "I like almonds", "I live in Lisbon"):
        alice.remember(fact)
    server, model = serve(wire.Chatbot(lambda request: f"Answer {len(listed(request.body))}"))
    agent = Agent(model(api), system_prompt="Be brief.", capabilities=[MemoryCapability(alice, session="s", k=1)])
    history = []
    before = embedder.query_calls
    for question in (QUESTION, "Do I like almonds or walnuts", "In which city do I live"):
        history = ran("run", agent, question, message_history=history).all_messages()
    assert embedder.query_calls - before == 3
    for earlier, later in pairwise(map(listed, server.bodies)):
        assert later[: len(earlier)] == earlier
    assert [len(blocks(body)) for body in server.bodies] == [1, 2, 3]


def test_frames_of_the_framework_are_nobodys_words(serve, alice):
    """What the framework writes around a prompt that looks like one of its frames is not remembered."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Yes"))
    ran("run", Agent(model(), capabilities=[MemoryCapability(alice)]), f"<system>{QUESTION}</system>")
    assert len(blocks(server.bodies[0])) == 1
    assert "looks like an application frame" in json.dumps(server.bodies[0])
    assert turns(alice)[1:] == [("user", f"<system>{QUESTION}</system>"), ("assistant", "Yes")]


@WAYS
@pytest.mark.parametrize("first", [True, False])
def test_history_processor_keeps_no_block(serve, alice, way, first):
    """What a history processor writes into the run's messages holds no block, wherever it stands in the list."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Yes", tools=[("look_up", {"word": "nut"})]))
    capabilities = [ProcessHistory(lambda messages: messages), MemoryCapability(alice)]
    agent = Agent(model(), tools=[look_up], capabilities=capabilities if first else capabilities[::-1])
    result = ran(way, agent)
    assert [len(blocks(body)) for body in server.bodies] == [1, 1]
    assert "<memory-" not in result.all_messages_json().decode()


@dataclass
class Deps:
    """What a run carries."""

    user: str | None = None


def of_run(store, **options):
    return MemoryCapability(
        lambda ctx: store.user(ctx.deps.user), session=lambda ctx: f"with {ctx.deps.user}", **options
    )


@WAYS
def test_user_of_the_run(serve, store, way):
    """A function of the run's context gives the user and the session."""
    for user in ("alice", "bob"):
        store.user(user).remember(f"The peanuts of {user}")
    server, model = serve(wire.Chatbot("Yes"))
    agent = Agent(model(), deps_type=Deps, capabilities=[of_run(store)])
    for user, other in (("alice", "bob"), ("bob", "alice")):
        ran(way, agent, deps=Deps(user))
        ((_, block),) = blocks(server.bodies[-1])
        assert user in block
        assert other not in block
        assert [turn.session for turn in store.user(user).history()][1:] == [f"with {user}"] * 2


def test_two_users_at_once(serve, store):
    """Of 20 runs at once for two users, with one agent, no request carries a word of the other."""
    for user in ("alice", "bob"):
        store.user(user).remember(f"The peanuts of {user}")
    server, model = serve(wire.Chatbot("Done", tools=[("look_up", {"word": "nut"})]))
    agent = Agent(model(), deps_type=Deps, tools=[look_up], capabilities=[of_run(store, recall_timeout=60)])

    async def talk(number):
        user = ("alice", "bob")[number % 2]
        way = (run, run_stream, iterate, stream_events)[number // 2 % 4]
        await way(agent, f"Which peanuts are mine, asks {user} for the time {number}", deps=Deps(user))

    async def crowd():
        await asyncio.gather(*(talk(number) for number in range(20)))

    asyncio.run(crowd())
    assert len(server.bodies) == 40
    for body in server.bodies:
        user, other = ("alice", "bob") if "asks alice" in str(body) else ("bob", "alice")
        assert other not in str(body)
        ((_, block),) = blocks(body)
        assert f"The peanuts of {user}" in block
    for user in ("alice", "bob"):
        roles = [role for role, _ in turns(store.user(user))]
        assert (roles.count("user"), roles.count("assistant")) == (11, 10)


@WAYS
def test_missing_user_raises_before_any_request(serve, store, way):
    """Without a user's memory nothing is sent, whatever `on_error` says."""
    server, model = serve(wire.Chatbot())
    for memory in (None, store, "alice"):
        with pytest.raises(InvalidInputError):
            MemoryCapability(memory)
        capability = MemoryCapability(lambda _, memory=memory: memory, on_error="ignore")
        with pytest.raises(InvalidInputError):
            ran(way, Agent(model(), capabilities=[capability]))
    assert server.requests == []


def test_async_memory(serve, alice):
    """The async handle of a user is as good as the sync one."""
    _, model = serve(wire.Chatbot("Noted"))
    ran("run", Agent(model(), capabilities=[MemoryCapability(aio.AsyncUserMemory(alice))]))
    assert turns(alice) == [("user", QUESTION), ("assistant", "Noted")]


@WAYS
@pytest.mark.parametrize("failing", ["read", "write"])
def test_failing_memory_is_no_obstacle(serve, store, alice, way, failing):
    """A memory that cannot be read or written changes nothing of what the agent says."""
    alice.remember(FACT)
    chatbot = wire.Chatbot("Yes")
    server, model = serve(chatbot)
    if failing == "read":
        store.close()
    else:
        chatbot.reply = lambda _: store.close() or "Yes"
    result = ran(way, Agent(model(), capabilities=[MemoryCapability(alice, on_error="warn")]))
    assert result.all_messages()[-1].parts[-1].content == "Yes"
    assert len(blocks(server.bodies[0])) == (failing == "write")
    assert not alice.health.ok


def test_failing_memory_raises_where_wanted(serve, store, alice):
    """With on_error="raise" a run ends with the error of memory, and nothing is sent."""
    server, model = serve(wire.Chatbot("Yes"))
    store.close()
    with pytest.raises(Exception, match="closed"):
        ran("run", Agent(model(), capabilities=[MemoryCapability(alice, on_error="raise")]))
    assert server.requests == []


@WAYS
def test_failing_model_leaves_nothing(serve, alice, way):
    """What the model raises reaches the caller, and no answer is remembered; outside of a stream nothing at all is."""
    _, model = serve(wire.Chatbot(failures=9))
    with pytest.raises(ModelAPIError):
        ran(way, Agent(model(), capabilities=[MemoryCapability(alice)]))
    assert [role for role, _ in turns(alice)] in ([], ["user"] if "stream" in way else [])


@pytest.mark.parametrize("way", ["run_stream", "run_stream_events"])
def test_broken_stream_keeps_the_users_turn(serve, alice, way):
    """A stream that breaks off keeps what the user said, and no part of the answer."""
    _, model = serve(wire.Chatbot("One two three", cut=2))
    with pytest.raises(Exception, match=r"."):
        ran(way, Agent(model(), capabilities=[MemoryCapability(alice)]))
    assert turns(alice) == [("user", QUESTION)]


@pytest.mark.parametrize("way", ["left", "raised", "cancelled"])
def test_stream_that_is_left_keeps_the_users_turn(serve, alice, way):
    """A reader who leaves a stream in the middle, in whichever way, keeps what the user said."""
    _, model = serve(wire.Chatbot("One two three four five six"))
    agent = Agent(model(), capabilities=[MemoryCapability(alice)])

    async def leave():
        async with agent.run_stream(QUESTION) as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                if way == "raised":
                    raise LookupError
                if way == "cancelled":
                    raise asyncio.CancelledError
                break

    async def left():
        expected = {"left": nullcontext(), "raised": pytest.raises(LookupError)}
        with expected.get(way) or pytest.raises(asyncio.CancelledError):
            await leave()
        await agent.model.client.close()

    asyncio.run(left())
    workers.finish(alice.breaker, seconds=10)
    assert turns(alice) == [("user", QUESTION)]


def test_beginning_of_an_answer_is_kept_where_wanted(serve, alice):
    """With keep_partial what a reader who left has read is remembered, and marked; what was sent back is not."""
    _, model = serve(wire.Chatbot("One two three four five six"))
    agent = Agent(model(), capabilities=[MemoryCapability(alice, keep_partial=True)])

    async def left():
        async with agent.run_stream(QUESTION) as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                break
        await agent.model.client.close()

    asyncio.run(left())
    workers.finish(alice.breaker, seconds=10)
    asked, partial = alice.history()
    assert (asked.text, partial.role, partial.metadata) == (QUESTION, "assistant", {"incomplete": True})
    assert "One two three four five six".startswith(partial.text)


def test_cancelled_run_keeps_the_users_turn(serve, alice):
    """A run that is cancelled before the answer keeps what the user said."""
    began = asyncio.Event()

    class Slow(OpenAIChatModel):
        async def request(self, *args, **kwargs):
            began.set()
            await asyncio.sleep(60)

    slow = Slow(wire.MODEL, provider=OpenAIProvider(openai_client=AsyncOpenAI(api_key="none")))
    agent = Agent(slow, capabilities=[MemoryCapability(alice)])

    async def cancelled():
        task = asyncio.create_task(agent.run(QUESTION))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    workers.finish(alice.breaker, seconds=10)
    assert turns(alice) == [("user", QUESTION)]


def test_answer_that_was_sent_back_is_not_remembered(serve, alice, embedder):
    """Of answers that a validator sends back only the last counts; where none passes, only the user's turn."""
    alice.remember(FACT)
    chatbot = wire.Chatbot(lambda request: f"Answer {len(listed(request.body))}")
    server, model = serve(chatbot)
    agent = Agent(model(), capabilities=[MemoryCapability(alice)], retries=1)

    def check(output: str) -> str:
        if "never" in output or output == "Answer 1":
            raise ModelRetry("Again")
        return output

    agent.output_validator(check)
    before = embedder.query_calls
    assert ran("run", agent).output == "Answer 4"
    assert embedder.query_calls - before == 1
    assert [len(blocks(body)) for body in server.bodies] == [1, 1]
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Answer 4")]
    chatbot.reply = "never"
    with pytest.raises(UnexpectedModelBehavior):
        ran("run", agent, "And what about walnuts then")
    assert turns(alice)[3:] == [("user", "And what about walnuts then")]


@pytest.mark.parametrize("way", ["run", "run_stream"])
def test_fallback_is_one_turn(serve, alice, embedder, way):
    """A fallback to another model has the same block, recalls once and remembers once."""
    alice.remember(FACT)
    failing, first = serve(wire.Chatbot(failures=9))
    server, second = serve(wire.Chatbot("Yes"))
    agent = Agent(FallbackModel(first(), second()), capabilities=[MemoryCapability(alice)])
    before = embedder.query_calls
    ran(way, agent)
    assert embedder.query_calls - before == 1
    assert blocks(failing.bodies[0]) == blocks(server.bodies[0])
    assert len(blocks(server.bodies[0])) == 1
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Yes")]


@API
@pytest.mark.parametrize("way", ["run", "run_stream"])
def test_wrapped_client_within(serve, alice, embedder, api, way):
    """With a wrapped client inside of the model memory is still added once and remembered once."""
    server, model = serve(wire.Chatbot("Yes"), lambda client: wrap(client, alice))
    agent = Agent(model(api), capabilities=[MemoryCapability(alice, session="s")])
    ran(way, agent, "I am allergic to walnuts and peanuts")
    before = embedder.query_calls
    ran(way, agent)
    assert embedder.query_calls - before == 1
    assert [len(blocks(body)) for body in server.bodies] == [0, 1]
    assert [role for role, _ in turns(alice)] == ["user", "assistant"] * 2


def test_agent_as_tool(serve, alice, embedder):
    """An agent without the capability that a tool asks gets no memory, and what it is asked is not remembered."""
    alice.remember(FACT)
    inner_server, inner = serve(wire.Chatbot("Inner words"))
    outer_server, outer = serve(wire.Chatbot("Done", tools=[("ask", {"question": "inner question about peanuts"})]))

    async def ask(question: str) -> str:
        return (await Agent(inner()).run(question)).output

    before = embedder.query_calls
    ran("run", Agent(outer(), tools=[ask], capabilities=[MemoryCapability(alice)]))
    assert embedder.query_calls - before == 1
    assert [len(blocks(body)) for body in outer_server.bodies] == [1, 1]
    assert "<memory-" not in str(inner_server.bodies)
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Done")]


@API
def test_refusal_is_not_remembered(serve, alice, api):
    """Of a refusal and of an answer that a filter cut off only the user's turn is kept."""
    chatbots = [wire.Chatbot(refusal="I cannot"), wire.Chatbot("Half of", finish="content_filter")]
    for chatbot in chatbots:
        _, model = serve(chatbot)
        agent = Agent(model(api), capabilities=[MemoryCapability(alice)])
        try:
            ran("run", agent, f"{QUESTION} {chatbot.finish}")
        except ContentFilterError:
            pass  # What Pydantic AI makes of an answer without a text.
    assert turns(alice) == [("user", f"{QUESTION} {chatbot.finish}") for chatbot in chatbots]


STATES = [{"openai_previous_response_id": "auto"}, {"openai_previous_response_id": "resp_0"},
          {"openai_conversation_id": "conv_1"}]  # fmt: skip


@pytest.mark.parametrize("of_model", [True, False])
@pytest.mark.parametrize("state", STATES)
def test_stateful_run_has_instructions(serve, alice, embedder, state, of_model):
    """Where OpenAI keeps the conversation every request has the block in its instructions, and none in its input."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Done", tools=[("look_up", {"word": "nut"})]))
    agent = Agent(
        model("responses", settings=state if of_model else None),
        instructions="Be brief.",
        tools=[look_up],
        capabilities=[MemoryCapability(alice)],
    )
    before = embedder.query_calls
    result = ran("run", agent, model_settings=None if of_model else state)
    assert embedder.query_calls - before == 1
    for body in server.bodies:
        told, block = body["instructions"].split("\n\n", 1)
        assert (told, is_block(block)) == ("Be brief.", True)
        assert "<memory-" not in str(body["input"])
    assert "<memory-" not in result.all_messages_json().decode()
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Done")]


@pytest.mark.parametrize("prompt", [{}, {"system_prompt": "Be brief."}, {"instructions": "Be brief."}])
@WAYS
def test_placement_system(serve, alice, way, prompt):
    """With placement="system" the block is among the instructions of the request, and nothing keeps it."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Yes"))
    result = ran(way, Agent(model(), capabilities=[MemoryCapability(alice, placement="system")], **prompt))
    (body,) = server.bodies
    told = [message for message in body["messages"] if "<memory-" in json.dumps(message)]
    assert [message["role"] for message in told] == ["system"]
    assert body["messages"][-1]["content"] == QUESTION
    assert ("Be brief." in json.dumps(body)) == bool(prompt)
    assert "<memory-" not in result.all_messages_json().decode()


def request(*messages, defaults=None, **settings):
    model = TestModel(settings=defaults)
    return ModelRequestContext(
        model=model,
        messages=list(messages),
        model_settings=settings or None,
        model_request_parameters=ModelRequestParameters(),
    )


def test_codec_reads():
    """Who said what: results of tools and system prompts are nobody's turn; calls and thoughts are no text."""
    given = request(
        ModelRequest([SystemPromptPart("be kind")]),
        ModelRequest([
            SystemPromptPart("be kind"),
            UserPromptPart(["a", ImageUrl("http://127.0.0.1/x"), TextContent("b")]),
            UserPromptPart("c"),
        ]),
        ModelResponse([ThinkingPart("hm"), TextPart("It "), TextPart("is"), ToolCallPart("look_up", {}, "1")]),
        ModelRequest([ToolReturnPart("look_up", "found", "1")]),
    )  # fmt: skip
    read = [(message.role, message.text, message.place) for message in RequestContexts().messages(given)]
    assert read == [("tool", "", 0), ("user", "a\nb\nc", 1), ("assistant", "It is", 2), ("tool", "", 3)]


def test_codec_copies():
    """Nothing that was passed in is changed; images and other parts keep their order."""
    image = BinaryContent(b"x", media_type="image/png")
    asked = ModelRequest([UserPromptPart([image, "b"]), ToolReturnPart("look_up", "found", "1")])
    given = request(asked, ModelResponse([TextPart("c")]), temperature=0)
    copy = RequestContexts().insert(given, {0: "BLOCK"})
    assert copy.messages[0].parts[0].content == [image, "b", "BLOCK"]
    assert copy.messages[0].parts[1] is asked.parts[1]
    assert copy.messages[1] is given.messages[1]
    assert asked.parts[0].content == [image, "b"]
    told = RequestContexts().instruct(given, "BLOCK")
    assert [part.content for part in told.model_request_parameters.instruction_parts] == ["BLOCK"]
    assert not given.model_request_parameters.instruction_parts


def test_codec_stateful():
    """A conversation that a provider keeps is known by the settings, and what xAI keeps gets no instructions."""
    kept = [{"openai_previous_response_id": "auto"}, {"openai_conversation_id": "c"}, {"openai_transport": "websocket"},
            {"xai_previous_response_id": "r"}]  # fmt: skip
    for settings in kept:
        assert RequestContexts().is_stateful(request(**settings))
        assert RequestContexts().is_stateful(request(defaults=settings))
        assert (RequestContexts().instruct(request(**settings), "BLOCK") is None) == ("xai" in str(settings))
    assert not RequestContexts().is_stateful(request(defaults={"temperature": 0}, openai_store=True))
