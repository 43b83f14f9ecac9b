"""Anthropic with memory: every path of the real SDK against a server on loopback."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext

import anthropic
import pydantic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import MessageParam

from memlayer import workers, wrap
from memlayer.adapters.anthropic import MESSAGES
from memlayer.prompt import is_block
from tests.adapters.loopback import Loopback
from tests.adapters.wires import anthropic as wire

FACT = "I am allergic to peanuts"
QUESTION = "What about peanuts, can I eat them?"
REPLY = "Better not, no peanuts."
BOTH = [("user", QUESTION), ("assistant", REPLY)]
BODY = {"model": "m", "max_tokens": 99, "messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture
def peanuts(alice):
    alice.remember(FACT, session="monday")
    return alice


def said(memory, session="s1"):
    return [(turn.role, turn.text) for turn in memory.history(session=session)]


def blocks(body):
    content = body["messages"][0]["content"]
    return [part["text"] for part in content if is_block(part.get("text", ""))] if isinstance(content, list) else []


def _streamed(events):
    return "".join(event.delta.text for event in events
                   if event.type == "content_block_delta" and event.delta.type == "text_delta")  # fmt: skip


def create(c):
    return c.messages.create(**BODY).content[0].text


def stream_flag(c):
    with c.messages.create(**BODY, stream=True) as events:
        return _streamed(events)


def stream_helper(c):
    with c.messages.stream(**BODY) as stream:
        return stream.get_final_text()


def raw(c):
    return c.messages.with_raw_response.create(**BODY).parse().content[0].text


def streaming_response(c):
    with c.messages.with_streaming_response.create(**BODY) as response:
        return json.loads(response.read())["content"][0]["text"]


def with_options(c):
    return create(c.with_options(timeout=30))


def beta(c):
    return c.beta.messages.create(**BODY).content[0].text


def post(c):
    return c.post("/v1/messages", body=BODY, cast_to=anthropic.types.Message).content[0].text


async def acreate(c):
    return (await c.messages.create(**BODY)).content[0].text


async def astream_flag(c):
    async with await c.messages.create(**BODY, stream=True) as events:
        return _streamed([event async for event in events])


async def astream_helper(c):
    async with c.messages.stream(**BODY) as stream:
        return await stream.get_final_text()


async def araw(c):
    response = await c.messages.with_raw_response.create(**BODY)
    parsed = response.parse()
    return (await parsed if asyncio.iscoroutine(parsed) else parsed).content[0].text


async def abeta(c):
    return (await c.with_options(timeout=30).beta.messages.create(**BODY)).content[0].text


SYNC = [create, stream_flag, stream_helper, raw, streaming_response, with_options, beta, post]
ASYNC = [acreate, astream_flag, astream_helper, araw, abeta]
PATHS = [pytest.param(path, id=path.__name__) for path in SYNC + ASYNC]


def run(path, url, memory, *, wrapped=True, **options):
    """A path's reply, and the client that was wrapped checked for its type."""
    how = {"base_url": url, "api_key": "none", "max_retries": 2}
    if path in SYNC:
        with Anthropic(**how) as plain:
            client = wrap(plain, memory, **options)
            assert isinstance(client, Anthropic)
            assert type(client).__name__ == "Anthropic"
            return path(client if wrapped else plain)

    async def once():
        async with AsyncAnthropic(**how) as plain:
            client = wrap(plain, memory, **options)
            assert isinstance(client, AsyncAnthropic)
            return await path(client if wrapped else plain)

    return asyncio.run(once())


@pytest.mark.parametrize("path", PATHS)
def test_every_path_injects_once_captures_once_and_asks_once(peanuts, embedder, path):
    """One block on the wire, behind the user's words; one turn of each side; one recall; the caller's own as it was."""
    before = json.dumps(BODY)
    with Loopback(wire.Chatbot(REPLY)) as server:
        assert run(path, server.url, peanuts, session="s1") == REPLY
    [body] = server.bodies
    assert len(blocks(body)) == 1
    assert body["messages"][0]["content"][0]["text"] == QUESTION
    assert FACT in blocks(body)[0]
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert json.dumps(BODY) == before


@pytest.mark.parametrize("path", PATHS)
def test_the_callers_client_stays_without_memory(peanuts, path):
    """It sends what it was told after it was wrapped."""
    with Loopback(wire.Chatbot(REPLY)) as server:
        assert run(path, server.url, peanuts, wrapped=False, session="s1") == REPLY
    assert blocks(server.bodies[0]) == []
    assert said(peanuts) == []


@pytest.mark.parametrize("path", [create, stream_flag, acreate, astream_flag], ids=lambda path: path.__name__)
def test_retries_of_the_sdk_inject_once(peanuts, embedder, path):
    """The server fails first: the same request again, one recall, one turn."""
    with Loopback(wire.Chatbot(REPLY, failures=1)) as server:
        assert run(path, server.url, peanuts, session="s1") == REPLY
    first, second = server.bodies
    assert first == second
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


def test_a_request_that_fails_is_not_remembered(peanuts):
    """The SDK's own error comes out, and the user will say it again."""
    with Loopback(wire.Chatbot(REPLY, failures=9, status=400)) as server, pytest.raises(anthropic.BadRequestError):
        run(create, server.url, peanuts, session="s1")
    assert said(peanuts) == []


def test_a_tool_loop_is_one_turn(peanuts, embedder):
    """Results of tools are none of the user's words; one recall, the user's turn once, and the last reply."""
    bot = wire.Chatbot(REPLY, tools=[("weather", {"city": "Lisbon"})], says_with_tools="Let me look.")
    with Loopback(bot) as server, Anthropic(base_url=server.url, api_key="none") as plain:
        c = wrap(plain, peanuts, session="s1")
        first = c.messages.create(**BODY)
        assert said(peanuts) == BOTH[:1]
        call = next(block for block in first.content if block.type == "tool_use")
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "peanut rain"}
        messages = [*BODY["messages"], {"role": "assistant", "content": first.content},
                    {"role": "user", "content": [result]}]  # fmt: skip
        assert c.messages.create(**{**BODY, "messages": messages}).content[0].text == REPLY
    one, two = server.bodies
    assert one["messages"][0] == two["messages"][0]
    assert two["messages"][2]["content"] == [result]
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("how", ["break", "close", "cut"])
def test_a_stream_that_breaks_off_keeps_the_users_turn(peanuts, how, keep):
    """Left, closed or cut off; the partial reply is kept only where that is asked for."""
    bot = wire.Chatbot(REPLY, cut=2 if how == "cut" else None)
    with Loopback(bot) as server, Anthropic(base_url=server.url, api_key="none") as plain:
        stream = wrap(plain, peanuts, session="s1", keep_partial=keep).messages.create(**BODY, stream=True)
        seen = ""
        with pytest.raises(Exception) if how == "cut" else nullcontext():
            for event in stream:
                seen += _streamed([event])
                if seen and how != "cut":
                    break
        stream.close()
    workers.finish(peanuts.breaker, seconds=10)
    assert said(peanuts) == [*BOTH[:1], *([("assistant", seen)] if keep else [])]


@pytest.mark.parametrize("bot", [{"refusal": "no"}, {"thinking": "hm, peanuts"}], ids=str)
def test_refusals_and_thoughts_are_not_remembered(peanuts, bot):
    """The user's turn is, and the reply's own text."""
    with Loopback(wire.Chatbot(REPLY, **bot)) as server, Anthropic(base_url=server.url, api_key="none") as plain:
        wrap(plain, peanuts, session="s1").messages.create(**BODY)
    assert said(peanuts) == (BOTH[:1] if "refusal" in bot else BOTH)


@pytest.mark.parametrize("system", ["Be kind.", [{"type": "text", "text": "Be kind."}], None])
def test_placement_system_is_a_block_at_the_end_of_the_system_prompt(peanuts, system):
    """Whether that is a str, blocks or nothing; the user's words stay alone."""
    own = {} if system is None else {"system": system}
    with Loopback(wire.Chatbot(REPLY)) as server, Anthropic(base_url=server.url, api_key="none") as plain:
        wrap(plain, peanuts, placement="system").messages.create(**BODY, **own)
    [body] = server.bodies
    assert is_block(body["system"][-1]["text"])
    assert [part["text"] for part in body["system"][:-1]] == ([] if system is None else ["Be kind."])
    assert body["messages"] == BODY["messages"]


def test_a_thread_and_other_calls_have_no_block(peanuts):
    """What Anthropic keeps gets nothing, and counting tokens is left alone; both sides of the thread are remembered."""
    with Loopback(wire.Chatbot(REPLY)) as server, Anthropic(base_url=server.url, api_key="none") as plain:
        c = wrap(plain, peanuts, session="s1")
        c.messages.create(**BODY, extra_body={"thread": {"type": "continue", "previous_message_id": "x"}})
        c.messages.count_tokens(model="m", messages=BODY["messages"])
    assert "<memory-" not in json.dumps(server.bodies)
    assert said(peanuts) == BOTH


CONTENTS = [
    "peanuts?",
    [{"type": "text", "text": "peanuts?", "cache_control": {"type": "ephemeral"}}],
    [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}],
    [{"type": "tool_result", "tool_use_id": "1", "content": "42"}, {"type": "text", "text": "so?"}],
    [{"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}],
    [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {}},
    ],
]


@pytest.mark.parametrize("role", ["user", "assistant"])
@pytest.mark.parametrize("content", CONTENTS, ids=lambda content: json.dumps(content)[:30])
def test_every_body_validates_against_the_sdks_own_types(role, content):
    """With a block in it; what was there is there in its order, untouched."""
    request = {**BODY, "messages": [{"role": role, "content": content}]}
    before = json.dumps(request)
    [message] = MESSAGES.insert(request, {0: "the block"})["messages"]
    assert json.dumps(request) == before
    pydantic.TypeAdapter(MessageParam).validate_python(message)
    own = [{"type": "text", "text": content}] if isinstance(content, str) else content
    assert message["content"] == [*own, {"type": "text", "text": "the block"}]
