"""Ollama with memory: every path of the real SDK against a server on loopback."""

from __future__ import annotations

import asyncio
import json

import ollama
import pytest
from ollama import AsyncClient, Client

from memlayer import workers, wrap
from memlayer.adapters.ollama import CHAT, GENERATE
from memlayer.errors import InvalidInputError
from memlayer.prompt import is_block
from tests.adapters.loopback import Loopback
from tests.adapters.wires import ollama as wire

FACT = "I am allergic to peanuts"
QUESTION = "What about peanuts, can I eat them?"
REPLY = "Better not, no peanuts."
MESSAGES = [{"role": "user", "content": QUESTION}]
BOTH = [("user", QUESTION), ("assistant", REPLY)]


@pytest.fixture
def peanuts(alice):
    alice.remember(FACT, session="monday")
    return alice


def said(memory, session="s1"):
    return [(turn.role, turn.text) for turn in memory.history(session=session)]


def block(body):
    """The block behind the user's words, or None."""
    text = wire.texts(body)[-1]
    own, _, rest = text.partition("\n\n")
    assert own == QUESTION
    return rest if is_block(rest) else None


def whole(c):
    return c.chat("m", MESSAGES).message.content


def streamed(c):
    return "".join(part.message.content for part in c.chat("m", MESSAGES, stream=True))


def objects(c):
    return c.chat(model="m", messages=[ollama.Message(role="user", content=QUESTION)]).message.content


def generated(c):
    return c.generate("m", QUESTION).response


def generated_streamed(c):
    return "".join(part.response for part in c.generate("m", QUESTION, stream=True))


async def awhole(c):
    return (await c.chat("m", MESSAGES)).message.content


async def astreamed(c):
    return "".join([part.message.content async for part in await c.chat("m", MESSAGES, stream=True)])


async def agenerated(c):
    return (await c.generate("m", QUESTION)).response


async def agenerated_streamed(c):
    return "".join([part.response async for part in await c.generate("m", QUESTION, stream=True)])


SYNC = [whole, streamed, objects, generated, generated_streamed]
ASYNC = [awhole, astreamed, agenerated, agenerated_streamed]


def run(path, url, memory=None, **options):
    """A path's reply; without a memory, from a client that was wrapped, by itself."""
    if path in SYNC:
        plain = Client(host=url)
        try:
            wrapped = wrap(plain, memory, **options)
            assert isinstance(wrapped, Client)
            assert type(wrapped).__name__ == "Client"
            return path(wrapped if options else plain)
        finally:
            plain._client.close()

    async def once():
        plain = AsyncClient(host=url)
        try:
            wrapped = wrap(plain, memory, **options)
            assert isinstance(wrapped, AsyncClient)
            return await path(wrapped if options else plain)
        finally:
            await plain._client.aclose()

    return asyncio.run(once())


@pytest.mark.parametrize("path", SYNC + ASYNC, ids=lambda path: path.__name__)
def test_every_path_injects_once_captures_once_and_asks_once(peanuts, embedder, path):
    """One block on the wire, behind the user's words; one turn of each side; one recall; the caller's own as it was."""
    with Loopback(wire.Chatbot(REPLY)) as server:
        assert run(path, server.url, peanuts, session="s1") == REPLY
    [body] = server.bodies
    assert FACT in (block(body) or "")
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert MESSAGES == [{"role": "user", "content": QUESTION}]


@pytest.mark.parametrize("path", SYNC + ASYNC, ids=lambda path: path.__name__)
def test_the_callers_client_stays_without_memory(peanuts, path):
    """It sends what it was told after it was wrapped."""
    with Loopback(wire.Chatbot(REPLY)) as server:
        assert run(path, server.url, peanuts) == REPLY
    assert block(server.bodies[0]) is None
    assert said(peanuts) == []


@pytest.mark.parametrize("path", SYNC + ASYNC, ids=lambda path: path.__name__)
def test_a_request_that_fails_is_not_remembered(peanuts, path):
    """The SDK's own error comes out, also from a stream, and the user will say it again."""
    with Loopback(wire.Chatbot(wire.failed(500))) as server, pytest.raises(ollama.ResponseError):
        run(path, server.url, peanuts, session="s1")
    assert said(peanuts) == []


def test_a_tool_loop_is_one_turn(peanuts, embedder):
    """Two requests: one recall, the same block, the user's turn once, and the reply."""
    bot = wire.Chatbot(wire.whole(calls=[wire.function_call("weather", city="Lisbon")]), REPLY)
    with Loopback(bot) as server:
        plain = Client(host=server.url)
        c = wrap(plain, peanuts, session="s1")
        first = c.chat("m", MESSAGES)
        assert said(peanuts) == BOTH[:1]
        result = {"role": "tool", "content": "peanut rain", "tool_name": "weather"}
        assert c.chat("m", [*MESSAGES, first.message, result]).message.content == REPLY
        plain._client.close()
    one, two = server.bodies
    assert one["messages"][0] == two["messages"][0]
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


def test_thinking_is_no_text(peanuts):
    """What the model thinks is not what it said."""
    with Loopback(wire.Chatbot(wire.whole(REPLY, thinking="hm, peanuts"))) as server:
        assert run(streamed, server.url, peanuts, session="s1") == REPLY
    assert said(peanuts) == BOTH


@pytest.mark.parametrize("keep", [False, True])
def test_a_stream_that_is_left_keeps_the_users_turn(peanuts, keep):
    """Closed in the middle; the partial reply is kept only where that is asked for."""
    with Loopback(wire.Chatbot(REPLY)) as server:
        plain = Client(host=server.url)
        stream = wrap(plain, peanuts, session="s1", keep_partial=keep).chat("m", MESSAGES, stream=True)
        first = next(stream).message.content
        stream.close()
        plain._client.close()
    workers.finish(peanuts.breaker, seconds=10)
    assert said(peanuts) == [*BOTH[:1], *([("assistant", first)] if keep else [])]


def test_a_stream_that_breaks_keeps_the_users_turn(peanuts):
    """The connection is cut in the middle; the caller sees the SDK's error."""
    with Loopback(wire.Chatbot(REPLY, cut=2)) as server, pytest.raises(Exception, match=r".+"):
        run(streamed, server.url, peanuts, session="s1")
    assert said(peanuts) == BOTH[:1]


def test_placement_system_goes_into_the_system_message_or_field(peanuts):
    """At its end, or as one; the user's words stay alone."""
    system = {"role": "system", "content": "Be kind."}
    with Loopback(wire.Chatbot(REPLY)) as server:
        plain = Client(host=server.url)
        c = wrap(plain, peanuts, placement="system")
        c.chat("m", [system, *MESSAGES])
        c.chat("m", MESSAGES)
        c.generate("m", QUESTION, system="Be kind.")
        plain._client.close()
    first, second, third = server.bodies
    assert first["messages"][0]["content"].startswith("Be kind.\n\n<memory-")
    assert second["messages"][0]["role"] == "system"
    assert third["system"].startswith("Be kind.\n\n<memory-")
    assert third["prompt"] == QUESTION


def test_a_conversation_that_the_context_holds_gets_instructions_only(peanuts):
    """The prompt goes in as it is, and the block into `system`; a gap to fill and a raw prompt get nothing."""
    with Loopback(wire.Chatbot(REPLY)) as server:
        plain = Client(host=server.url)
        c = wrap(plain, peanuts)
        c.generate("m", QUESTION, context=[1, 2])
        c.generate("m", QUESTION, suffix="}")
        c.generate("m", QUESTION, raw=True)
        plain._client.close()
    stateful, gap, raw = server.bodies
    assert is_block(stateful["system"])
    assert [body["prompt"] for body in server.bodies] == [QUESTION] * 3
    assert "<memory-" not in json.dumps([gap, raw])


def test_the_module_and_other_things_are_refused(alice):
    """With a sentence that names what to pass."""
    for thing in (ollama, Client):
        with pytest.raises(InvalidInputError, match="Client"):
            wrap(thing, alice)


SHAPES = [
    {"role": "user", "content": "peanuts?", "images": [{"value": "AAAA"}]},
    {"role": "user", "content": ""}, {"role": "user"},
    {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [wire.function_call("f", a=1)]},
    {"role": "tool", "content": "42", "tool_name": "f"}, {"role": "system", "content": "Be kind."},
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape["role"])
def test_every_body_validates_against_the_sdks_own_types(shape):
    """With a block in it, and with what was there untouched."""
    request = {"model": "m", "messages": [*MESSAGES, shape]}
    before = json.dumps(request)
    injected = CHAT.insert(request, {1: "the block"})
    assert json.dumps(request) == before
    ollama.Message.model_validate(injected["messages"][1])
    assert {**injected["messages"][1], "content": None} == {**shape, "content": None}
    assert injected["messages"][0] is request["messages"][0]
    assert GENERATE.insert({"prompt": "hi"}, {0: "b"})["prompt"] == "hi\n\nb"
