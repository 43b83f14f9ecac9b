"""Pydantic AI with memory: real runs against a server on loopback."""

from __future__ import annotations

import asyncio
import json

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from memlayer.adapters.pydantic_ai import MemoryCapability
from memlayer.errors import InvalidInputError
from tests.adapters.loopback import Loopback
from tests.adapters.wires import openai as wire

FACT = "I am allergic to peanuts"
QUESTION = "What about peanuts, can I eat them?"
REPLY = "Better not, no peanuts."
BOTH = [("user", QUESTION), ("assistant", REPLY)]


def weather(city: str) -> str:
    """The weather of a city."""
    return f"peanut rain in {city}"


@pytest.fixture
def peanuts(alice):
    alice.remember(FACT, session="monday")
    return alice


def said(memory, session="s1"):
    return [(turn.role, turn.text) for turn in memory.history(session=session)]


def blocks(body):
    return json.dumps(body).count("Background records")


async def whole(agent, **how):
    result = await agent.run(QUESTION, **how)
    return result.output, result


async def streamed(agent, **how):
    async with agent.run_stream(QUESTION, **how) as result:
        return await result.get_output(), result


def run(capability, *, model=OpenAIChatModel, bot=None, way=whole, **how):
    """What the server was sent, the reply, and all messages of the run."""

    async def main(url):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            agent = Agent(model("m", provider=OpenAIProvider(openai_client=client)), tools=[weather],
                          system_prompt="Be kind.", capabilities=[capability])  # fmt: skip
            output, result = await way(agent, **how)
            return output, result.all_messages_json().decode()

    with Loopback(bot or wire.Chatbot(REPLY)) as server:
        output, messages = asyncio.run(main(server.url))
    return server.bodies, output, messages


@pytest.mark.parametrize("model", [OpenAIChatModel, OpenAIResponsesModel])
@pytest.mark.parametrize("way", [whole, streamed])
def test_a_run_injects_once_captures_once_and_asks_once(peanuts, embedder, model, way):
    """One block in the request; one turn of each side; one recall; nothing of it in the run's messages."""
    bodies, output, messages = run(MemoryCapability(peanuts, session="s1"), model=model, way=way)
    assert output == REPLY
    assert [blocks(body) for body in bodies] == [1]
    assert FACT in json.dumps(bodies)
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert "<memory-" not in messages


def test_a_tool_loop_is_one_turn(peanuts, embedder):
    """Each request has the same block; one recall, the user's turn once, the last reply; no result of a tool."""
    bot = wire.Chatbot(REPLY, tools=[("weather", {"city": "Lisbon"})])
    bodies, _, messages = run(MemoryCapability(peanuts, session="s1"), bot=bot)
    assert [blocks(body) for body in bodies] == [1, 1]
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert "<memory-" not in messages


def test_placement_system_is_a_part_of_the_system_prompt(peanuts):
    """The user's words stay alone."""
    bodies, _, _ = run(MemoryCapability(peanuts, placement="system"))
    [system] = [text for text in map(json.dumps, bodies[0]["messages"][:-1]) if "<memory-" in text]
    assert '"system"' in system
    assert "<memory-" not in json.dumps(bodies[0]["messages"][-1])


def test_the_user_comes_from_the_runs_context(store, peanuts):
    """Twenty runs at once of two users: no request has a word of the other; without a user there is no request."""
    store.user("bob").remember("Bob keeps bees and says buzz")
    capability = MemoryCapability(lambda ctx: store.user(ctx.deps) if ctx.deps else None, recall_timeout=60)

    async def main(url):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            model = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client))
            agent = Agent(model, deps_type=str, capabilities=[capability])
            names = [("alice", "bob")[number % 2] for number in range(20)]
            await asyncio.gather(*(agent.run(f"{name} {n} asks", deps=name) for n, name in enumerate(names)))
            with pytest.raises(InvalidInputError):
                await agent.run("hi", deps="")

    with Loopback(wire.Chatbot("Noted.")) as server:
        asyncio.run(main(server.url))
    assert len(server.bodies) == 20
    for body in server.bodies:
        text = json.dumps(body)
        assert ("buzz" in text) == ("bob" in text)
        assert (FACT in text) == ("alice" in text)


def test_a_failing_memory_does_not_break_the_run(peanuts, store):
    """The request goes out as it came."""
    capability = MemoryCapability(peanuts, session="s1")
    store.close()
    bodies, output, _ = run(capability)
    assert output == REPLY
    assert blocks(bodies[0]) == 0
