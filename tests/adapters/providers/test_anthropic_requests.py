"""memlayer.adapters.anthropic: the paths of the SDK that few take, the tool runner, and every shape of a request."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
from anthropic import Anthropic, AsyncAnthropic, Stream, beta_async_tool, beta_tool
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from memlayer import wrap
from memlayer.adapters.anthropic import MESSAGES
from tests.adapters.loopback import Loopback
from tests.adapters.wires import anthropic as wire

FACT = "I am allergic to peanuts"
QUESTION = "May I eat peanuts today, what do you say?"
REPLY = "No peanuts for you."
BOTH = [("user", QUESTION), ("assistant", REPLY)]
ASKED = {"role": "user", "content": QUESTION}
BODY = {"model": "m", "max_tokens": 99, "messages": [ASKED]}
CALLS = [("weather", {"city": "Oslo"})]


@pytest.fixture
def bob(alice):
    """A user with one memory that fits the question."""
    alice.remember(FACT)
    return alice


def said(memory) -> list[tuple[str, str]]:
    """What was remembered after the first memory."""
    return [(turn.role, turn.text) for turn in memory.history()][1:]


def blocks(body: Any) -> int:
    return json.dumps(body).count("<memory-")


def joined(events) -> str:
    return "".join(
        event.delta.text for event in events if event.type == "content_block_delta" and event.delta.type == "text_delta"
    )


# ---------------------------------------------------------------- more paths


@beta_tool
def weather(city: str) -> str:
    """The weather.

    Args:
        city: where.
    """
    return f"rain of peanuts in {city}"


@beta_async_tool(name="weather")
async def aweather(city: str) -> str:
    """The weather.

    Args:
        city: where.
    """
    return f"rain of peanuts in {city}"


def _parse(client):
    answer = client.messages.parse(**BODY)
    return answer.content[0].text, type(answer)


def _beta_parse(client):
    answer = client.beta.messages.parse(**BODY)
    return answer.content[0].text, type(answer)


def _generator(client):
    answer = client.messages.create(**{**BODY, "messages": (one for one in [ASKED])})
    return answer.content[0].text, type(answer)


def _raw_stream(client):
    raw = client.messages.with_raw_response.create(**BODY, stream=True)
    return joined(raw.parse()), type(raw)


def _streaming_response_parse(client):
    with client.messages.with_streaming_response.create(**BODY) as raw:
        return raw.parse().content[0].text, type(raw)


def _streaming_response_stream(client):
    with client.messages.with_streaming_response.create(**BODY, stream=True) as raw:
        return joined(raw.parse()), type(raw)


def _text_stream(client):
    with client.messages.stream(**BODY) as stream:
        return "".join(stream.text_stream), type(stream)


def _beta_stream(client):
    with client.beta.messages.stream(**BODY) as stream:
        return stream.get_final_text(), type(stream)


def _beta_raw(client):
    raw = client.beta.messages.with_raw_response.create(**BODY)
    return raw.parse().content[0].text, type(raw)


def _post_stream(client):
    stream = client.post(
        "/v1/messages", body={**BODY, "stream": True}, cast_to=object, stream=True, stream_cls=Stream[object]
    )
    return "".join(event.get("delta", {}).get("text", "") for event in stream), type(stream)


def _extra_body(client):
    answer = client.messages.create(**{**BODY, "messages": []}, extra_body={"messages": [ASKED]})
    return answer.content[0].text, type(answer)


def _tool_runner(client):
    runner = client.beta.messages.tool_runner(**BODY, tools=[weather])
    return runner.until_done().content[0].text, type(runner)


def _tool_runner_stream(client):
    runner = client.beta.messages.tool_runner(**BODY, tools=[weather], stream=True)
    return "".join(joined(stream) for stream in runner), type(runner)


async def _aparse(client):
    answer = await client.messages.parse(**BODY)
    return answer.content[0].text, type(answer)


async def _astreaming_response(client):
    async with client.messages.with_streaming_response.create(**BODY) as raw:
        return (await raw.parse()).content[0].text, type(raw)


async def _astreaming_response_stream(client):
    async with client.messages.with_streaming_response.create(**BODY, stream=True) as raw:
        return joined([event async for event in await raw.parse()]), type(raw)


async def _araw_stream(client):
    raw = await client.messages.with_raw_response.create(**BODY, stream=True)
    parsed = raw.parse()
    stream = await parsed if asyncio.iscoroutine(parsed) else parsed
    return joined([event async for event in stream]), type(raw)


async def _apost(client):
    answer = await client.post("/v1/messages", body=BODY, cast_to=object)
    return answer["content"][0]["text"], type(answer)


async def _atool_runner(client):
    runner = client.beta.messages.tool_runner(**BODY, tools=[aweather])
    return (await runner.until_done()).content[0].text, type(runner)


PATHS = [_parse, _beta_parse, _generator, _raw_stream, _streaming_response_parse, _streaming_response_stream,
         _text_stream, _beta_stream, _beta_raw, _post_stream, _extra_body, _tool_runner, _tool_runner_stream,
         _aparse, _astreaming_response, _astreaming_response_stream, _araw_stream, _apost, _atool_runner]  # fmt: skip


def run(path, server, memory=None):
    """What a path gives with a client that has this memory."""
    if not asyncio.iscoroutinefunction(path):
        with Anthropic(base_url=server.url, api_key="none") as client:
            return path(client if memory is None else wrap(client, memory))

    async def once():
        async with AsyncAnthropic(base_url=server.url, api_key="none") as client:
            return await path(client if memory is None else wrap(client, memory))

    return asyncio.run(once())


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__[1:])
def test_every_other_path_has_memory_once(bob, embedder, path):
    """One block in each attempt, one recall, one turn of each side; text and type as without memory."""
    was = copy.deepcopy(BODY)
    with Loopback(wire.Chatbot(REPLY)) as server:
        bare = run(path, server)
        assert bare[0] == REPLY
        assert blocks(server.bodies) == 0
        server.answer = wire.Chatbot(REPLY, failures=1, status=503)
        assert run(path, server, bob) == bare
        assert server.bodies[1] == server.bodies[2]
        assert [blocks(body) for body in server.bodies] == [0, 1, 1]
    assert said(bob) == BOTH
    assert embedder.query_calls == 1
    assert was == BODY


def test_middleware_keeps_the_memory(bob):
    """`with_middleware` gives a client with memory; the middleware sees the block, and is run as without."""
    seen = []

    def look(request, call_next):
        seen.append(blocks(request.json))
        return call_next(request)

    with Loopback(wire.Chatbot(REPLY)) as server, Anthropic(base_url=server.url, api_key="none") as client:
        wrap(client, bob).with_middleware(look).messages.create(**BODY)
        wrap(client.with_middleware(look), bob).messages.create(**BODY)
    assert seen == [1, 1]
    assert said(bob) == BOTH * 2


# ---------------------------------------------------------------- the tool runner


@pytest.mark.parametrize("path", [_tool_runner, _tool_runner_stream, _atool_runner], ids=lambda path: path.__name__[1:])
def test_a_run_of_tools_is_one_turn(bob, embedder, path):
    """The loop sends the whole conversation, with the same block in it; one recall, one turn of each side."""
    with Loopback(wire.Chatbot(REPLY, tools=CALLS)) as server:
        assert run(path, server, bob)[0] == REPLY
        first, second = server.bodies
    assert second["messages"][:1] == first["messages"]
    assert [blocks(first), blocks(second)] == [1, 1]
    assert "rain of peanuts in Oslo" in json.dumps(second["messages"][2])
    assert said(bob) == BOTH
    assert embedder.query_calls == 1


def test_a_thread_is_the_callers_choice(bob):
    """What the caller asks for by name stays: a thread, which has no block, and whose turns are remembered."""
    with Loopback(wire.Chatbot(REPLY)) as server, Anthropic(base_url=server.url, api_key="none") as client:
        if not hasattr(client.beta.messages, "thread"):
            pytest.skip("this anthropic has no threads")
        thread = wrap(client, bob).beta.messages.thread(model="m", max_tokens=99)
        assert thread.send(ASKED).content[0].text == REPLY
        [body] = server.bodies
    assert body["thread"] == {"type": "create"}
    assert body["messages"] == [ASKED]
    assert "system" not in body
    assert said(bob) == BOTH


def test_a_results_message_with_words_in_it_is_the_users(bob, embedder):
    """A person may speak while tools run: the words are theirs, and the block stands behind the results."""
    result = {"type": "tool_result", "tool_use_id": "toolu_0", "content": "rain"}
    call = {"type": "tool_use", "id": "toolu_0", "name": "weather", "input": {}}
    words = {"type": "text", "text": QUESTION}
    messages = [{"role": "user", "content": "Look at the weather please, would you?"},
                {"role": "assistant", "content": [call]}, {"role": "user", "content": [result, words]}]  # fmt: skip
    with Loopback(wire.Chatbot(REPLY)) as server, Anthropic(base_url=server.url, api_key="none") as client:
        wrap(client, bob).messages.create(**{**BODY, "messages": messages})
        [body] = server.bodies
    assert body["messages"][2]["content"][:2] == [result, words]
    assert blocks(body["messages"][2]) == 1
    assert said(bob) == BOTH
    assert embedder.query_calls == 1


def test_cache_marks_stay_where_they_are(bob):
    """On blocks and on the request; the block has none."""
    mark = {"cache_control": {"type": "ephemeral"}}
    words = {"type": "text", "text": QUESTION, **mark}
    system = [{"type": "text", "text": "Be brief.", **mark}]
    with Loopback(wire.Chatbot(REPLY)) as server, Anthropic(base_url=server.url, api_key="none") as client:
        wrap(client, bob).messages.create(
            **{**BODY, "messages": [{"role": "user", "content": [words]}]}, system=system, extra_body=mark
        )
        [body] = server.bodies
    own, block = body["messages"][0]["content"]
    assert own == words
    assert set(block) == {"type", "text"}
    assert (body["system"], body["cache_control"]) == (system, mark["cache_control"])


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("stop", "kept"), [("max_tokens", True), ("stop_sequence", True), ("pause_turn", False), ("refusal", False)]
)
def test_what_a_reply_that_stopped_is_worth(bob, streams, stop, kept):
    """Cut off, it is what the user saw; paused, it goes on with the next request; refused, it is none."""
    with Loopback(wire.Chatbot(REPLY, stop=stop)) as server, Anthropic(base_url=server.url, api_key="none") as client:
        answer = wrap(client, bob).messages.create(**BODY, stream=streams)
        if streams:
            list(answer)
    assert said(bob) == (BOTH if kept else BOTH[:1])


# ---------------------------------------------------------------- every allowed shape; the SDK's types are the judge

WORDS = st.sampled_from(["peanuts", "two\nlines", "é 漢字", " x "])
MARK = {"cache_control": {"type": "ephemeral"}}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
TEXT = st.fixed_dictionaries(
    {"type": st.just("text"), "text": WORDS}, optional={"cache_control": st.just(MARK["cache_control"])}
)
RESULT = st.fixed_dictionaries(
    {"type": st.just("tool_result"), "tool_use_id": st.just("toolu_1")},
    optional={"content": WORDS | st.lists(TEXT | st.just(PICTURE), max_size=2), "is_error": st.booleans()},
)
GIVEN = st.one_of(
    TEXT,
    RESULT,
    st.just(PICTURE),
    st.just({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}, **MARK}),
    st.just({"type": "search_result", "source": "x", "title": "y", "content": [{"type": "text", "text": "z"}]}),
)
MADE = st.one_of(
    TEXT,
    st.just({"type": "thinking", "thinking": "hm", "signature": "x"}),
    st.just({"type": "redacted_thinking", "data": "x"}),
    st.just({"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1]}}),
    st.just({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}),
)
TURNS = st.one_of(
    st.fixed_dictionaries({"role": st.just("user"), "content": WORDS | st.lists(GIVEN, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": WORDS | st.lists(MADE, min_size=1, max_size=3)}),
)
SYSTEM = st.none() | WORDS | st.lists(TEXT, min_size=1, max_size=2)
JUDGE: TypeAdapter[Any] = TypeAdapter(MessageCreateParamsNonStreaming)
BLOCK = "<memory-block>"


def forced(value: Any) -> Any:
    """Iterables that the validator reads lazily are read, so that what is in them is judged too."""
    if isinstance(value, dict):
        return {key: forced(one) for key, one in value.items()}
    if isinstance(value, str | bytes | int | float | None):
        return value
    return [forced(one) for one in value]


@given(messages=st.lists(TURNS, min_size=1, max_size=5), system=SYSTEM)
@settings(max_examples=200)
def test_every_body_is_valid(messages, system):
    """With a block behind every message of the user's, or in the system prompt; what was there is still there."""
    request = {**BODY, "messages": messages, **({} if system is None else {"system": system})}
    was = copy.deepcopy(request)
    forced(JUDGE.validate_python(request))
    read = MESSAGES.messages(request)
    users = [message for message in read if message.role == "user"]
    inserted = MESSAGES.insert(request, {message.place: BLOCK for message in users})
    forced(JUDGE.validate_python(inserted))
    assert json.dumps(inserted).count(BLOCK) == len(users)
    for message in users:
        before = messages[message.place]["content"]
        *parts, block = inserted["messages"][message.place]["content"]
        assert block == {"type": "text", "text": BLOCK}
        assert parts == before or [part["text"] for part in parts] == [before]
    instructed = MESSAGES.instruct(request, BLOCK)
    forced(JUDGE.validate_python(instructed))
    assert instructed["system"][-1] == {"type": "text", "text": BLOCK}
    assert instructed["messages"] is request["messages"]
    results = [place for place, turn in enumerate(messages) if turn["role"] == "user"
               and not isinstance(turn["content"], str)
               and any(block["type"] == "tool_result" for block in turn["content"])
               and not any(block["type"] == "text" for block in turn["content"])]  # fmt: skip
    assert [message.place for message in read if message.role == "tool"] == results
    assert request == was
