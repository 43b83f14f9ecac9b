"""`MemoryRunner`: real agents, the SDK's own models for responses and chat completions, a loopback server."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    ModelRefusalError,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    RunHooks,
    SQLiteSession,
    StopAtTools,
    function_tool,
    input_guardrail,
    set_tracing_disabled,
)
from agents.run import ModelInputData
from openai import APIError, AsyncOpenAI

from memlayer import aio, workers, wrap
from memlayer.adapters.openai_agents import MemoryRunner
from memlayer.adapters.openai_agents_items import ModelInputs
from memlayer.errors import InvalidInputError
from memlayer.prompt import is_block
from tests.adapters.loopback import Loopback
from tests.adapters.wires import openai as wire

FACT = "I am allergic to peanuts"
QUESTION = "Which snack with peanuts is good for me"

set_tracing_disabled(True)

MODELS = {"responses": OpenAIResponsesModel, "chat": OpenAIChatCompletionsModel}
API = pytest.mark.parametrize("api", list(MODELS))
WAYS = pytest.mark.parametrize("way", ["run", "run_sync", "run_streamed"])


@function_tool
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

        def model(api="responses"):
            asked = AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
            return MODELS[api](model=wire.MODEL, openai_client=client(asked))

        return server, model

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def ran(runner, way, agent, question=QUESTION, **options):
    """Runs an agent on one question, one of the ways that there are."""

    async def run():
        if way == "run":
            return await runner.run(agent, question, **options)
        result = runner.run_streamed(agent, question, **options)
        async for _ in result.stream_events():
            pass
        return result

    if way == "run_sync":
        # The SDK leaves its loop open for the next run.
        with asyncio.Runner() as loop:
            asyncio.set_event_loop(loop.get_loop())
            return runner.run_sync(agent, question, **options)
    return asyncio.run(run())


def blocks(body):
    """The blocks in a request's body, with the role of the message that each stands in."""
    return [
        (item["role"], part["text"])
        for item in body.get("messages") or body["input"]
        for part in (item.get("content") if isinstance(item.get("content"), list) else [])
        if is_block(part.get("text") or "")
    ]


def turns(memory):
    return [(turn.role, turn.text) for turn in memory.history()]


@API
@WAYS
def test_one_injection_one_capture_one_recall(serve, alice, embedder, api, way):
    """Each way to run an agent injects once, recalls once, remembers both sides once; the result stays as it was."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Crackers are fine"))
    before = embedder.query_calls
    result = ran(MemoryRunner(alice, session="s1"), way, Agent("snacks", model=model(api)))
    assert embedder.query_calls - before == 1
    (body,) = server.bodies
    ((role, block),) = blocks(body)
    assert role == "user"
    assert FACT in block
    assert (body.get("messages") or body["input"])[-1]["content"][0]["text"] == QUESTION
    assert result.final_output == "Crackers are fine"
    assert "<memory-" not in str(result.to_input_list())
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Crackers are fine")]
    assert [turn.session for turn in alice.history()][1:] == ["s1", "s1"]


@API
@WAYS
def test_tool_loop(serve, alice, embedder, api, way):
    """Of a tool loop every request has the same block, recall is asked once, and each side is remembered once."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Done", tools=[("look_up", {"word": "nut"})], says_with_tools="Let me look"))
    before = embedder.query_calls
    result = ran(MemoryRunner(alice), way, Agent("snacks", model=model(api), tools=[look_up]))
    assert embedder.query_calls - before == 1
    first, second = ((body.get("messages") or body["input"]) for body in server.bodies)
    assert second[: len(first)] == first
    assert [len(blocks(body)) for body in server.bodies] == [1, 1]
    assert result.final_output == "Done"
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Done")]


@WAYS
def test_handoff(serve, alice, embedder, way):
    """Over a handoff both agents have the same block, recall is asked once, and each side is remembered once."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Done", tools=[("transfer_to_other", {})]))
    agent = Agent("first", model=model(), handoffs=[Agent("other", model=model("chat"))])
    before = embedder.query_calls
    result = ran(MemoryRunner(alice), way, agent)
    assert embedder.query_calls - before == 1
    assert result.last_agent.name == "other"
    first, second = (blocks(body) for body in server.bodies)
    assert len(first) == 1
    assert first == second
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Done")]


@API
def test_session_holds_no_block(serve, alice, embedder, api):
    """A session of the SDK keeps what was said and no block, and each turn begins with the one before it."""
    for fact in (FACT, "I like almonds", "I live in Lisbon"):
        alice.remember(fact)
    server, model = serve(
        wire.Chatbot(lambda request: f"Answer {len(request.body.get('messages') or request.body['input'])}")
    )
    runner = MemoryRunner(alice, session="s", k=1)
    agent = Agent("snacks", model=model(api))
    session = SQLiteSession("s")
    before = embedder.query_calls

    async def talk():
        for question in (QUESTION, "Do I like almonds or walnuts", "In which city do I live"):
            await runner.run(agent, question, session=session)
        return await session.get_items()

    kept = asyncio.run(talk())
    session.close()
    assert embedder.query_calls - before == 3
    assert [item["role"] for item in kept] == ["user", "assistant"] * 3
    assert "<memory-" not in str(kept)
    bodies = [(body.get("messages") or body["input"]) for body in server.bodies]
    for earlier, later in pairwise(bodies):
        assert later[: len(earlier)] == earlier
    assert [len(blocks(body)) for body in server.bodies] == [1, 2, 3]
    assert len(alice) == 9


def test_agent_as_tool(serve, alice, embedder):
    """An agent that is a tool gets no memory, and what the model asks of it is not remembered."""
    alice.remember(FACT)
    inner_server, inner = serve(wire.Chatbot("Inner words"))
    outer_server, outer = serve(wire.Chatbot("Done", tools=[("ask", {"input": "inner question about peanuts"})]))
    tool = Agent("inner", model=inner()).as_tool("ask", "Asks.")
    before = embedder.query_calls
    ran(MemoryRunner(alice), "run", Agent("outer", model=outer(), tools=[tool]))
    assert embedder.query_calls - before == 1
    assert [len(blocks(body)) for body in outer_server.bodies] == [1, 1]
    assert "<memory-" not in str(inner_server.bodies)
    assert len(inner_server.bodies) == 1
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Done")]


@dataclass
class Context:
    """What a run carries."""

    user: str | None = None


@WAYS
def test_user_of_the_run(serve, store, way):
    """A function of the run's context gives the user and the session."""
    for user in ("alice", "bob"):
        store.user(user).remember(f"The peanuts of {user}")
    server, model = serve(wire.Chatbot("Yes"))
    runner = MemoryRunner(lambda context: store.user(context.user), session=lambda context: f"with {context.user}")
    for user, other in (("alice", "bob"), ("bob", "alice")):
        ran(runner, way, Agent("snacks", model=model()), context=Context(user))
        ((_, block),) = blocks(server.bodies[-1])
        assert user in block
        assert other not in block
        assert [turn.session for turn in store.user(user).history()][1:] == [f"with {user}"] * 2


def test_two_users_at_once(serve, store):
    """Of 20 runs at once for two users, with one agent and one runner, no request carries a word of the other."""
    for user in ("alice", "bob"):
        store.user(user).remember(f"The peanuts of {user}")
    server, model = serve(wire.Chatbot("Done", tools=[("look_up", {"word": "nut"})]))
    runner = MemoryRunner(lambda context: store.user(context.user))
    agent = Agent("snacks", model=model(), tools=[look_up])

    async def talk(number):
        user = ("alice", "bob")[number % 2]
        question = f"Which peanuts are mine, asks {user} for the time {number}"
        if number % 4 < 2:
            return await runner.run(agent, question, context=Context(user))
        result = runner.run_streamed(agent, question, context=Context(user))
        return [event async for event in result.stream_events()]

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
            MemoryRunner(memory)
        runner = MemoryRunner(lambda _, memory=memory: memory, on_error="ignore")
        with pytest.raises(InvalidInputError):
            ran(runner, way, Agent("snacks", model=model()))
    assert server.requests == []


def test_async_memory(serve, alice):
    """The async handle of a user is as good as the sync one."""
    _, model = serve(wire.Chatbot("Noted"))
    ran(MemoryRunner(aio.AsyncUserMemory(alice)), "run", Agent("snacks", model=model()))
    assert turns(alice) == [("user", QUESTION), ("assistant", "Noted")]


STATES = [{"previous_response_id": "resp_0"}, {"conversation_id": "conv_1"}, {"auto_previous_response_id": True}]


@WAYS
@pytest.mark.parametrize("state", STATES)
def test_stateful_run_has_instructions(serve, alice, embedder, way, state):
    """Where OpenAI keeps the conversation every request has the block in its instructions, and none in its input."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Done", tools=[("look_up", {"word": "nut"})]))
    before = embedder.query_calls
    agent = Agent("snacks", instructions="Be brief.", model=model(), tools=[look_up])
    ran(MemoryRunner(alice), way, agent, **state)
    assert embedder.query_calls - before == 1
    for body in server.bodies:
        told, block = body["instructions"].split("\n\n", 1)
        assert (told, is_block(block)) == ("Be brief.", True)
        assert "<memory-" not in str(body["input"])
    assert [item["type"] for item in server.bodies[1]["input"]] == ["function_call_output"]
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Done")]


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
    result = ran(MemoryRunner(alice, on_error="warn"), way, Agent("snacks", model=model()))
    assert result.final_output == "Yes"
    assert len(blocks(server.bodies[0])) == (failing == "write")
    assert not alice.health.ok


def test_failing_memory_raises_where_wanted(serve, store, alice):
    """With on_error="raise" a run ends with the error of memory, and nothing is sent."""
    server, model = serve(wire.Chatbot("Yes"))
    store.close()
    with pytest.raises(Exception, match="closed"):
        ran(MemoryRunner(alice, on_error="raise"), "run", Agent("snacks", model=model()))
    assert server.requests == []


@pytest.mark.parametrize("way", ["run", "run_sync"])
def test_failing_model_leaves_nothing(serve, alice, way):
    """What the model raises reaches the caller, and nothing is remembered."""
    _, model = serve(wire.Chatbot(failures=9))
    with pytest.raises(APIError):
        ran(MemoryRunner(alice), way, Agent("snacks", model=model()))
    assert len(alice) == 0


def test_broken_stream_keeps_the_users_turn(serve, alice):
    """A stream that breaks off keeps what the user said, and no part of the answer."""
    _, model = serve(wire.Chatbot("One two three", cut=2))
    with pytest.raises(Exception, match=r"."):
        ran(MemoryRunner(alice), "run_streamed", Agent("snacks", model=model()))
    workers.finish(alice.breaker, seconds=10)
    assert turns(alice) == [("user", QUESTION)]


def test_cancelled_run_keeps_the_users_turn(serve, alice):
    """A run and a stream that are cancelled before the answer keep what the user said."""
    began = asyncio.Event()

    class Slow(OpenAIResponsesModel):
        async def get_response(self, *args, **kwargs):
            began.set()
            await asyncio.sleep(60)

        async def stream_response(self, *args, **kwargs):
            began.set()
            await asyncio.sleep(60)
            yield

    runner = MemoryRunner(alice)

    async def cancelled():
        agent = Agent("snacks", model=Slow(model=wire.MODEL, openai_client=AsyncOpenAI(api_key="none")))
        task = asyncio.create_task(runner.run(agent, QUESTION))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        began.clear()
        result = runner.run_streamed(agent, "And what about walnuts then")
        await began.wait()
        result.cancel()
        async for _ in result.stream_events():
            pass

    asyncio.run(cancelled())
    workers.finish(alice.breaker, seconds=10)
    assert turns(alice) == [("user", QUESTION), ("user", "And what about walnuts then")]


@WAYS
def test_hooks_and_filter_of_the_caller(serve, alice, way):
    """The caller's filter and hooks are called as before; what the filter makes is what memory is put into."""
    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Done", tools=[("look_up", {"word": "nut"})]))
    called = []

    class Hooks(RunHooks):
        async def on_agent_start(self, context, agent):
            called.append("agent start")

        async def on_llm_start(self, context, agent, system_prompt, input_items):
            called.append("llm start")

        async def on_llm_end(self, context, agent, response):
            called.append("llm end")

        async def on_tool_end(self, context, agent, tool, result):
            called.append("tool end")

        async def on_agent_end(self, context, agent, output):
            called.append("agent end")

    async def trimmed(data):
        return ModelInputData(input=data.model_data.input[1:], instructions="Be brief.")

    agent = Agent("snacks", model=model(), tools=[look_up])
    given = [{"role": "user", "content": "An old question"}, {"role": "user", "content": QUESTION}]
    for config in (RunConfig(call_model_input_filter=trimmed), {"call_model_input_filter": trimmed}):
        ran(MemoryRunner(alice), way, agent, given, run_config=config, hooks=Hooks())
    assert called == ["agent start", "llm start", "llm end", "tool end", "llm start", "llm end", "agent end"] * 2
    for body in server.bodies:
        assert body["instructions"] == "Be brief."
        assert body["input"][0]["content"][0]["text"] == QUESTION
        assert len(blocks(body)) == 1
    assert given[1]["content"] == QUESTION
    with pytest.raises(TypeError):
        ran(MemoryRunner(alice), way, agent, hooks=object())


@API
def test_wrapped_client_within(serve, alice, embedder, api):
    """With a wrapped client inside of the model memory is still added once and remembered once."""
    server, model = serve(wire.Chatbot("Yes"), lambda client: wrap(client, alice))
    runner = MemoryRunner(alice)
    ran(runner, "run", Agent("snacks", model=model(api)), "I am allergic to walnuts and peanuts")
    before = embedder.query_calls
    ran(runner, "run", Agent("snacks", model=model(api)))
    assert embedder.query_calls - before == 1
    assert [len(blocks(body)) for body in server.bodies] == [0, 1]
    assert [role for role, _ in turns(alice)] == ["user", "assistant"] * 2


def test_after_a_run_clients_have_memory_again(serve, alice):
    """A run ends for what comes after it in the same task, also where the model failed or refused."""
    client = None

    def wrapped(given):
        nonlocal client
        client = given
        return given

    for chatbot in (wire.Chatbot("Yes"), wire.Chatbot("Yes", failures=1)):
        _, model = serve(chatbot, wrapped)

        async def talk(agent, fails=chatbot.failures):
            with pytest.raises(APIError) if fails else nullcontext():
                await MemoryRunner(alice).run(agent, QUESTION)
            before = len(alice)
            await wrap(client, alice).responses.create(model=wire.MODEL, input=f"And then, says {fails}")
            assert len(alice) - before == 2

        asyncio.run(talk(Agent("snacks", model=model())))


def test_refusal_is_not_remembered(serve, alice):
    """Of a refusal only the user's turn is kept."""
    _, model = serve(wire.Chatbot(refusal="I cannot"))
    with pytest.raises(ModelRefusalError):
        ran(MemoryRunner(alice), "run", Agent("snacks", model=model()))
    assert turns(alice) == [("user", QUESTION)]


def test_final_output_of_a_tool(serve, alice):
    """What a tool answers is no turn, also where it is the run's final output."""
    _, model = serve(wire.Chatbot("Done", tools=[("look_up", {"word": "nut"})]))
    agent = Agent(
        "snacks", model=model(), tools=[look_up], tool_use_behavior=StopAtTools(stop_at_tool_names=["look_up"])
    )
    assert ran(MemoryRunner(alice), "run", agent).final_output == "peanuts: nut"
    assert turns(alice) == [("user", QUESTION)]


def test_guardrail_before_the_model(serve, alice):
    """What a guardrail stops before the model is asked is not remembered."""

    @input_guardrail(run_in_parallel=False)
    async def no(context, agent, input):
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered=True)

    server, model = serve(wire.Chatbot("Yes"))
    with pytest.raises(InputGuardrailTripwireTriggered):
        ran(MemoryRunner(alice), "run", Agent("snacks", model=model(), input_guardrails=[no]))
    assert (server.requests, len(alice)) == ([], 0)


def test_approval(serve, alice, embedder):
    """A run that waits for an approval and goes on is one turn, whichever run of it the model ends in."""

    def order(word: str) -> str:
        """Orders it."""
        return "ordered"

    alice.remember(FACT)
    server, model = serve(wire.Chatbot("Done", tools=[("order", {"word": "nut"})]))
    runner = MemoryRunner(lambda context: alice if context == "alice" else None)
    agent = Agent("snacks", model=model(), tools=[function_tool(order, needs_approval=True)])
    before = embedder.query_calls

    async def run():
        state = (await runner.run(agent, QUESTION, context="alice")).to_state()
        (asked,) = state.get_interruptions()
        state.approve(asked)
        return await runner.run(agent, state)

    assert asyncio.run(run()).final_output == "Done"
    assert embedder.query_calls - before == 1
    assert [len(blocks(body)) for body in server.bodies] == [1, 1]
    assert turns(alice) == [("user", FACT), ("user", QUESTION), ("assistant", "Done")]


def test_codec_reads():
    """Who said what: results of tools are nobody's turn, calls and reasoning have no text."""
    given = ModelInputData(
        input=[
            {"role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "x"}],
            },
            {"type": "reasoning", "id": "1", "summary": [{"type": "summary_text", "text": "hm"}]},
            {"type": "function_call", "call_id": "1", "name": "look_up", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "found"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        ],
        instructions=None,
    )
    read = [(message.role, message.text, message.place) for message in ModelInputs().messages(given)]
    assert read == [
        ("system", "be kind", 0), ("user", "a", 1), ("assistant", "", 2), ("assistant", "", 3), ("tool", "", 4),
        ("assistant", "b", 5),
    ]  # fmt: skip


def test_codec_copies():
    """Nothing that was passed in is changed; images and other parts keep their order."""
    image = {"type": "input_image", "image_url": "x"}
    asked = {"role": "user", "content": [image, {"type": "input_text", "text": "b"}]}
    given = ModelInputData(input=[asked, {"role": "assistant", "content": "c"}], instructions="s")
    copy = ModelInputs().insert(given, {0: "BLOCK"})
    assert copy.input[0]["content"] == [*asked["content"], {"type": "input_text", "text": "BLOCK"}]
    assert len(asked["content"]) == 2
    assert copy.input[1] is given.input[1]
    assert ModelInputs().instruct(given, "BLOCK").instructions == "s\n\nBLOCK"
    assert ModelInputs().instruct(replace(given, instructions=None), "BLOCK").instructions == "BLOCK"
    assert given.instructions == "s"
