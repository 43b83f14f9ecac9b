"""memlayer.adapters.openai: every path of the SDK has memory once, and gives back what it gave before."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from memlayer.wrapping import wrap
from tests.adapters.loopback import Loopback
from tests.adapters.wires import openai as wire

FACT = "I am allergic to peanuts"
QUESTION = "May I eat peanuts today, what do you say?"
REPLY = "No peanuts for you."
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
ITEMS = [{"role": "user", "content": QUESTION}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
MODEL = "gpt-test"


# ---------------------------------------------------------------- the paths

# Each takes a client and gives (text, type of what the SDK gave back). Some are not in every major.


def _chat_text(answer: Any) -> Any:
    return answer.choices[0].message.content


def _chunks_text(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def _events_text(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def _chat_create(client):
    answer = client.chat.completions.create(model=MODEL, messages=CHAT)
    return _chat_text(answer), type(answer)


def _chat_generator(client):
    answer = client.chat.completions.create(model=MODEL, messages=(one for one in CHAT))
    return _chat_text(answer), type(answer)


def _chat_stream(client):
    stream = client.chat.completions.create(
        model=MODEL, messages=CHAT, stream=True, stream_options={"include_usage": True}
    )
    return _chunks_text(list(stream)), type(stream)


def _chat_stream_next(client):
    stream = client.chat.completions.create(model=MODEL, messages=CHAT, stream=True)
    chunks = []
    while (chunk := next(stream, None)) is not None:
        chunks.append(chunk)
    return _chunks_text(chunks), type(stream)


def _chat_stream_with(client):
    with client.chat.completions.create(model=MODEL, messages=CHAT, stream=True) as stream:
        return _chunks_text(list(stream)), type(stream)


def _chat_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=CHAT) as stream:
        for _ in stream:
            pass
        return _chat_text(stream.get_final_completion()), type(stream)


def _chat_helper_until_done(client):
    with client.chat.completions.stream(model=MODEL, messages=CHAT) as stream:
        return _chat_text(stream.until_done().get_final_completion()), type(stream)


def _chat_parse(client):
    answer = client.chat.completions.parse(model=MODEL, messages=CHAT)
    return _chat_text(answer), type(answer)


def _chat_raw(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=CHAT)
    assert raw.status_code == 200
    return _chat_text(raw.parse()), type(raw)


def _chat_raw_parse(client):
    raw = client.chat.completions.with_raw_response.parse(model=MODEL, messages=CHAT)
    return _chat_text(raw.parse()), type(raw)


def _chat_raw_stream(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=CHAT, stream=True)
    stream = raw.parse()
    assert raw.parse() is stream
    return _chunks_text(list(stream)), type(raw)


def _chat_streaming_response(client):
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=CHAT) as raw:
        return _chat_text(raw.parse()), type(raw)


def _chat_streaming_response_read(client):
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=CHAT) as raw:
        return json.loads(raw.read())["choices"][0]["message"]["content"], type(raw)


def _chat_streaming_response_stream(client):
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=CHAT, stream=True) as raw:
        return _chunks_text(list(raw.parse())), type(raw)


def _chat_with_options(client):
    answer = client.with_options(timeout=9.0).chat.completions.create(model=MODEL, messages=CHAT)
    return _chat_text(answer), type(answer)


def _chat_copied_twice(client):
    answer = client.copy(max_retries=3).with_options(timeout=9.0).chat.completions.create(model=MODEL, messages=CHAT)
    return _chat_text(answer), type(answer)


def _chat_client_raw(client):
    raw = client.with_raw_response.chat.completions.create(model=MODEL, messages=CHAT)
    return _chat_text(raw.parse()), type(raw)


def _chat_beta(client):
    answer = client.beta.chat.completions.parse(model=MODEL, messages=CHAT)
    return _chat_text(answer), type(answer)


def _chat_post(client):
    answer = client.post("/chat/completions", body={"model": MODEL, "messages": CHAT}, cast_to=object)
    return answer["choices"][0]["message"]["content"], type(answer)


def _chat_post_stream(client):
    stream = client.post(
        "/chat/completions", body={"model": MODEL, "messages": CHAT, "stream": True}, cast_to=object,
        stream=True, stream_cls=openai.Stream[object],
    )  # fmt: skip
    texts = [event["choices"][0]["delta"].get("content") or "" for event in stream]
    return "".join(texts), type(stream)


def _chat_extra_body(client):
    answer = client.chat.completions.create(model=MODEL, messages=[], extra_body={"messages": CHAT})
    return _chat_text(answer), type(answer)


def _responses_create(client):
    answer = client.responses.create(model=MODEL, input=ITEMS)
    return answer.output_text, type(answer)


def _responses_str(client):
    answer = client.responses.create(model=MODEL, input=QUESTION, instructions="Be brief.")
    return answer.output_text, type(answer)


def _responses_stream(client):
    stream = client.responses.create(model=MODEL, input=ITEMS, stream=True)
    return _events_text(list(stream)), type(stream)


def _responses_helper(client):
    with client.responses.stream(model=MODEL, input=ITEMS) as stream:
        for _ in stream:
            pass
        return stream.get_final_response().output_text, type(stream)


def _responses_parse(client):
    answer = client.responses.parse(model=MODEL, input=ITEMS)
    return answer.output_text, type(answer)


def _responses_raw(client):
    raw = client.responses.with_raw_response.create(model=MODEL, input=ITEMS)
    return raw.parse().output_text, type(raw)


def _responses_raw_stream(client):
    raw = client.responses.with_raw_response.create(model=MODEL, input=ITEMS, stream=True)
    return _events_text(list(raw.parse())), type(raw)


def _responses_streaming_response(client):
    with client.responses.with_streaming_response.create(model=MODEL, input=ITEMS) as raw:
        return raw.parse().output_text, type(raw)


def _responses_with_options(client):
    answer = client.with_options(timeout=9.0).responses.create(model=MODEL, input=ITEMS)
    return answer.output_text, type(answer)


def _responses_beta(client):
    answer = client.beta.responses.create(model=MODEL, input=ITEMS)
    return "".join(part.text for item in answer.output for part in item.content), type(answer)


def _responses_post(client):
    answer = client.post("/responses", body={"model": MODEL, "input": ITEMS}, cast_to=object)
    return answer["output"][0]["content"][0]["text"], type(answer)


SYNC = {name[1:]: path for name, path in list(globals().items()) if name.startswith(("_chat_", "_responses_"))}
del SYNC["chat_text"]


async def _achat_create(client):
    answer = await client.chat.completions.create(model=MODEL, messages=CHAT)
    return _chat_text(answer), type(answer)


async def _achat_stream(client):
    stream = await client.chat.completions.create(
        model=MODEL, messages=CHAT, stream=True, stream_options={"include_usage": True}
    )
    return _chunks_text([chunk async for chunk in stream]), type(stream)


async def _achat_stream_with(client):
    async with await client.chat.completions.create(model=MODEL, messages=CHAT, stream=True) as stream:
        return _chunks_text([chunk async for chunk in stream]), type(stream)


async def _achat_helper(client):
    async with client.chat.completions.stream(model=MODEL, messages=CHAT) as stream:
        async for _ in stream:
            pass
        return _chat_text(await stream.get_final_completion()), type(stream)


async def _achat_parse(client):
    answer = await client.chat.completions.parse(model=MODEL, messages=CHAT)
    return _chat_text(answer), type(answer)


async def _achat_raw(client):
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=CHAT)
    return _chat_text(raw.parse()), type(raw)


async def _achat_raw_stream(client):
    raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=CHAT, stream=True)
    return _chunks_text([chunk async for chunk in raw.parse()]), type(raw)


async def _achat_streaming_response(client):
    async with client.chat.completions.with_streaming_response.create(model=MODEL, messages=CHAT) as raw:
        return _chat_text(await raw.parse()), type(raw)


async def _achat_streaming_response_stream(client):
    async with client.chat.completions.with_streaming_response.create(model=MODEL, messages=CHAT, stream=True) as raw:
        return _chunks_text([chunk async for chunk in await raw.parse()]), type(raw)


async def _achat_with_options(client):
    answer = await client.with_options(timeout=9.0).chat.completions.create(model=MODEL, messages=CHAT)
    return _chat_text(answer), type(answer)


async def _achat_beta(client):
    answer = await client.beta.chat.completions.parse(model=MODEL, messages=CHAT)
    return _chat_text(answer), type(answer)


async def _achat_post(client):
    answer = await client.post("/chat/completions", body={"model": MODEL, "messages": CHAT}, cast_to=object)
    return answer["choices"][0]["message"]["content"], type(answer)


async def _aresponses_create(client):
    answer = await client.responses.create(model=MODEL, input=ITEMS)
    return answer.output_text, type(answer)


async def _aresponses_stream(client):
    stream = await client.responses.create(model=MODEL, input=ITEMS, stream=True)
    return _events_text([event async for event in stream]), type(stream)


async def _aresponses_helper(client):
    async with client.responses.stream(model=MODEL, input=ITEMS) as stream:
        async for _ in stream:
            pass
        return (await stream.get_final_response()).output_text, type(stream)


async def _aresponses_parse(client):
    answer = await client.responses.parse(model=MODEL, input=ITEMS)
    return answer.output_text, type(answer)


async def _aresponses_raw(client):
    raw = await client.responses.with_raw_response.create(model=MODEL, input=ITEMS)
    return raw.parse().output_text, type(raw)


async def _aresponses_streaming_response(client):
    async with client.responses.with_streaming_response.create(model=MODEL, input=ITEMS) as raw:
        return (await raw.parse()).output_text, type(raw)


async def _aresponses_beta(client):
    answer = await client.beta.responses.create(model=MODEL, input=ITEMS)
    return "".join(part.text for item in answer.output for part in item.content), type(answer)


ASYNC = {name[2:]: path for name, path in list(globals().items()) if name.startswith(("_achat_", "_aresponses_"))}


def _skip_if_missing(client, name):
    """Old majors lack some paths; these and no others."""
    if name == "responses_beta" and not hasattr(client.beta, "responses"):
        pytest.skip("this openai has no client.beta.responses")


def blocks(body: Any) -> int:
    return json.dumps(body).count("<memory-")


def said(memory) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in memory.history()]


def sync_client(server, **options) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", **options)


def async_client(server, **options) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", **options)


@pytest.fixture
def bob(alice):
    """A user with one memory that fits the question."""
    alice.remember(FACT)
    return alice


def _check(server, bob, embedder, was, text, kinds):
    assert text == REPLY
    assert kinds[0] is kinds[1]
    bodies = server.bodies[1:]  # the first is that of the bare client
    assert len(bodies) == 2, "one refused with 503, one answered"
    assert bodies[0] == bodies[1]
    assert blocks(bodies[0]) == 1
    assert FACT in json.dumps(bodies[0])
    assert said(bob) == [("user", FACT), ("user", QUESTION), ("assistant", REPLY)]
    assert embedder.query_calls == 1
    assert was == (CHAT, ITEMS)


@pytest.mark.parametrize("name", SYNC)
def test_every_sync_path_has_memory_once(name, bob, embedder):
    """One block in each attempt, one recall, one turn of each side; types, messages and client as they were."""
    was = copy.deepcopy((CHAT, ITEMS))
    with Loopback(wire.Chatbot(REPLY)) as server, sync_client(server) as client:
        _skip_if_missing(client, name)
        bare_text, bare_kind = SYNC[name](client)
        assert bare_text == REPLY
        assert blocks(server.bodies) == 0
        state = dict(vars(client))
        wrapped = wrap(client, bob)
        server.answer = wire.Chatbot(REPLY, failures=1, status=503)
        text, kind = SYNC[name](wrapped)
        assert vars(client) == state
        _check(server, bob, embedder, was, text, (kind, bare_kind))


@pytest.mark.parametrize("name", ASYNC)
def test_every_async_path_has_memory_once(name, bob, embedder):
    """As with the sync client."""
    was = copy.deepcopy((CHAT, ITEMS))

    async def run():
        async with async_client(server) as client:
            _skip_if_missing(client, name)
            bare_text, bare_kind = await ASYNC[name](client)
            assert bare_text == REPLY
            state = dict(vars(client))
            wrapped = wrap(client, bob)
            server.answer = wire.Chatbot(REPLY, failures=1, status=503)
            text, kind = await ASYNC[name](wrapped)
            assert vars(client) == state
            return text, (kind, bare_kind)

    with Loopback(wire.Chatbot(REPLY)) as server:
        _check(server, bob, embedder, was, *asyncio.run(run()))
