"""OpenAI Agents with memory: real runs against a server on loopback."""

from __future__ import annotations

import asyncio
import json

import pytest
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
)
from openai import AsyncOpenAI

from memlayer.adapters.openai_agents import MemoryRun
from memlayer.errors import InvalidInputError
from tests.adapters.loopback import Loopback
from tests.adapters.wires import openai as wire

FACT = "I am allergic to peanuts"
QUESTION = "What about peanuts, can I eat them?"
REPLY = "Better not, no peanuts."
BOTH = [("user", QUESTION), ("assistant", REPLY)]
MODELS = [OpenAIResponsesModel, OpenAIChatCompletionsModel]


@function_tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"peanut rain in {city}"


@pytest.fixture
def peanuts(alice):
    alice.remember(FACT, session="monday")
    return alice


def said(memory, session="s1"):
    return [(turn.role, turn.text) for turn in memory.history(session=session)]


def run(memory, *, model=OpenAIResponsesModel, bot=None, streamed=False, text=QUESTION, **how):
    """What the server was sent, and the run's result."""

    async def main(url):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            agent = Agent(name="a", instructions="Be kind.", model=model("m", client), tools=[weather])
            how.setdefault("run_config", memory.config(RunConfig(tracing_disabled=True)))
            if not streamed:
                return await Runner.run(agent, text, hooks=memory.hooks, **how)
            result = Runner.run_streamed(agent, text, hooks=memory.hooks, **how)
            async for _ in result.stream_events():
                pass
            return result

    with Loopback(bot or wire.Chatbot(REPLY)) as server:
        result = asyncio.run(main(server.url))
    return server.bodies, result


def blocks(body):
    return json.dumps(body).count("Background records")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_injects_once_captures_once_and_asks_once(peanuts, embedder, model, streamed):
    """One block in the request; one turn of each side; one recall; nothing of it in the run's own items."""
    bodies, result = run(MemoryRun(peanuts, session="s1"), model=model, streamed=streamed)
    assert [blocks(body) for body in bodies] == [1]
    assert FACT in json.dumps(bodies)
    assert result.final_output == REPLY
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert "<memory-" not in json.dumps(result.to_input_list())


@pytest.mark.parametrize("model", MODELS)
def test_a_tool_loop_is_one_turn(peanuts, embedder, model):
    """Each request has the same block; one recall, the user's turn once, the last reply."""
    bot = wire.Chatbot(REPLY, tools=[("weather", {"city": "Lisbon"})])
    bodies, _ = run(MemoryRun(peanuts, session="s1"), model=model, bot=bot)
    assert [blocks(body) for body in bodies] == [1, 1]
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


def test_nothing_leaks_into_a_session(peanuts):
    """What the SDK keeps of a conversation holds no block, and the next run replays the first one's."""
    session = SQLiteSession("s1")
    memory = MemoryRun(peanuts, session="s1")
    run(memory, session=session)
    bodies, _ = run(memory, session=session, text="And what else is bad for me?")
    assert "<memory-" not in json.dumps(asyncio.run(session.get_items()))
    assert blocks(bodies[0]) >= 1
    assert len(said(peanuts)) == 4


def test_a_stateful_run_gets_instructions_only(peanuts):
    """The items go out as they came."""
    bodies, _ = run(MemoryRun(peanuts, session="s1", stateful=True))
    assert "<memory-" in bodies[0]["instructions"]
    assert "<memory-" not in json.dumps(bodies[0]["input"])


def test_the_user_comes_from_the_runs_context(store, peanuts):
    """Twenty runs at once of two users: no request has a word of the other; without a user there is no request."""
    store.user("bob").remember("Bob keeps bees and says buzz")
    memory = MemoryRun(lambda name: store.user(name) if name else None, recall_timeout=60)

    async def main(url):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            agent = Agent(name="a", model=OpenAIResponsesModel("m", client))

            async def one(number):
                name = ("alice", "bob")[number % 2]
                config = memory.config(RunConfig(tracing_disabled=True))
                await Runner.run(agent, f"{name} {number} asks", context=name, hooks=memory.hooks, run_config=config)

            await asyncio.gather(*(one(number) for number in range(20)))
            before = len(server.bodies)
            with pytest.raises(InvalidInputError):
                await Runner.run(agent, "hi", hooks=memory.hooks, run_config=memory.config())
            assert len(server.bodies) == before

    with Loopback(wire.Chatbot("Noted.")) as server:
        asyncio.run(main(server.url))
    for body in server.bodies:
        text = json.dumps(body)
        assert ("buzz" in text) == ("bob" in text)
        assert (FACT in text) == ("alice" in text)


def test_a_failing_memory_does_not_break_the_run(peanuts, store):
    """The request goes out as it came."""
    memory = MemoryRun(peanuts, session="s1")
    store.close()
    bodies, result = run(memory)
    assert result.final_output == REPLY
    assert blocks(bodies[0]) == 0
