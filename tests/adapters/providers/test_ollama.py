"""Ollama with memory: every path of the real SDK against a server on loopback."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import json
import threading

import ollama
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ollama import AsyncClient, Client
from ollama._types import ChatRequest, GenerateRequest

from memlayer import workers, wrap
from memlayer.adapters.ollama import CHAT, GENERATE
from memlayer.errors import InvalidInputError
from memlayer.prompt import is_block
from tests.adapters.loopback import Answer, Loopback
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


def test_a_streamed_tool_loop_is_one_turn(peanuts, embedder):
    """What the model says before it calls a tool is not the reply; async, and with the SDK's own objects sent back."""
    bot = wire.Chatbot(wire.whole("I shall look.", calls=[wire.function_call("weather", city="Lisbon")]), REPLY)

    async def main(url):
        plain = AsyncClient(host=url)
        c = wrap(plain, peanuts, session="s1")
        messages = [ollama.Message(role="user", content=QUESTION)]
        async for part in await c.chat("m", messages, stream=True):
            messages.append(part.message)
        messages.append(ollama.Message(role="tool", content="peanut rain", tool_name="weather"))
        text = "".join([part.message.content async for part in await c.chat("m", messages, stream=True)])
        await plain._client.aclose()
        return text

    with Loopback(bot) as server:
        assert asyncio.run(main(server.url)) == REPLY
    one, two = server.bodies
    assert one["messages"][0] == two["messages"][0]
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


def test_a_conversation_keeps_its_beginning_and_what_is_passed_in_stays(peanuts, embedder):
    """Each request begins with the one before it, block and all; the caller's messages, dicts or objects, images and
    all, are as they were."""
    image = {"role": "user", "content": "What is in this picture of peanuts, please?", "images": [b"abc"]}
    messages = [ollama.Message(role="system", content="Be kind."), *MESSAGES]
    with Loopback(wire.Chatbot(REPLY)) as server:
        plain = Client(host=server.url)
        c = wrap(plain, peanuts, session="s1")
        for following in (image, ollama.Message(role="user", content="And are peanuts nuts at all?"), None):
            before = copy.deepcopy(messages)
            messages.append(c.chat("m", tuple(messages)).message)
            assert messages[:-1] == before
            messages.append(following)
        plain._client.close()
    for earlier, later in itertools.pairwise(server.bodies):
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]
    # The one memory that there is stands in the first block; what follows in the conversation is in the conversation.
    assert [json.dumps(body).count("<memory-") for body in server.bodies] == [1, 1, 1]
    assert server.bodies[1]["messages"][3]["images"] == ["YWJj"]
    assert len(said(peanuts)) == 6
    assert embedder.query_calls == 3


@pytest.mark.parametrize("what", ["chat", "generate"])
def test_replies_are_of_the_types_that_they_were(peanuts, what):
    """Whole and streamed, sync and async."""

    async def atypes(url, memory):
        plain = AsyncClient(host=url)
        c = plain if memory is None else wrap(plain, memory)
        answer = await getattr(c, what)("m", MESSAGES if what == "chat" else QUESTION)
        stream = await getattr(c, what)("m", MESSAGES if what == "chat" else QUESTION, stream=True)
        events = [event async for event in stream]
        await plain._client.aclose()
        return type(answer), type(stream), {type(event) for event in events}, len(events)

    def types(url, memory):
        plain = Client(host=url)
        c = plain if memory is None else wrap(plain, memory)
        answer = getattr(c, what)("m", MESSAGES if what == "chat" else QUESTION)
        stream = getattr(c, what)("m", MESSAGES if what == "chat" else QUESTION, stream=True)
        events = list(stream)
        plain._client.close()
        return type(answer), type(stream), {type(event) for event in events}, len(events)

    with Loopback(wire.Chatbot(REPLY)) as server:
        assert types(server.url, peanuts) == types(server.url, None)
        assert asyncio.run(atypes(server.url, peanuts)) == asyncio.run(atypes(server.url, None))


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


def test_a_stream_that_nobody_holds_any_more_keeps_the_users_turn(peanuts):
    """The caller breaks out of its loop, without closing anything."""
    with Loopback(wire.Chatbot(REPLY)) as server:
        plain = Client(host=server.url)
        for _ in wrap(plain, peanuts, session="s1").chat("m", MESSAGES, stream=True):
            break
        gc.collect()
        plain._client.close()
    workers.finish(peanuts.breaker, seconds=10)
    assert said(peanuts) == BOTH[:1]


@pytest.mark.parametrize("way", ["closed", "dropped", "cancelled"])
def test_an_async_stream_that_is_left_keeps_the_users_turn(peanuts, way):
    """Closed after its first part; let go of; or cancelled while the next one is waited for."""
    arrived, left = asyncio.Event(), threading.Event()
    bot = wire.Chatbot(REPLY)

    def slowly(request):
        reply = bot(request)

        def lines():
            yield next(reply.body)
            if way == "cancelled":
                left.wait(10)

        return Answer(lines(), kind=reply.kind)

    async def read(stream):
        async for _ in stream:
            arrived.set()

    async def main(url):
        plain = AsyncClient(host=url)
        stream = await wrap(plain, peanuts, session="s1").chat("m", MESSAGES, stream=True)
        if way == "cancelled":
            task = asyncio.create_task(read(stream))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await anext(stream)
            if way == "closed":
                await stream.aclose()
        del stream
        await asyncio.sleep(0)
        await plain._client.aclose()

    with Loopback(slowly) as server:
        asyncio.run(asyncio.wait_for(main(server.url), 20))
        left.set()
    workers.finish(peanuts.breaker, seconds=10)
    assert said(peanuts) == BOTH[:1]


@pytest.mark.parametrize("path", [p for p in SYNC + ASYNC if "streamed" in p.__name__], ids=lambda path: path.__name__)
@pytest.mark.parametrize("fault", ["cut", "error"])
def test_a_stream_that_breaks_keeps_the_users_turn(peanuts, path, fault):
    """The connection is cut in the middle, or the server says that it failed; the caller sees the error that it would
    see without memory."""

    def broken(request):
        if fault == "cut":
            return bot(request)
        whole = bot(request)
        lines = itertools.chain(itertools.islice(whole.body, 2), [b'{"error": "out of memory"}\n'])
        return Answer(lines, kind=whole.kind)

    kinds = []
    for options in ({}, {"session": "s1"}):
        bot = wire.Chatbot(REPLY, cut=2 if fault == "cut" else None)
        with Loopback(broken) as server, pytest.raises(Exception, match=r".+") as caught:
            run(path, server.url, peanuts, **options)
        kinds.append(caught.type)
    assert kinds[0] is kinds[1]
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


def test_wrapping_twice_and_what_a_wrapped_client_shares(peanuts, store):
    """The last memory counts, and only it; the connections are those of the caller's client."""
    bob = store.user("bob")
    with Loopback(wire.Chatbot(REPLY)) as server:
        plain = Client(host=server.url)
        c = wrap(wrap(plain, peanuts, session="s1"), bob, session="s1")
        assert c.memlayer.health.ok
        assert c._client is plain._client
        assert not hasattr(plain, "memlayer")
        assert whole(c) == REPLY
        plain._client.close()
    assert said(peanuts) == []
    assert said(bob) == BOTH


def test_other_calls_have_no_memory(peanuts):
    """Embedding is left alone."""
    with Loopback(wire.Chatbot(REPLY)) as server:
        plain = Client(host=server.url)
        wrap(plain, peanuts).embed("m", QUESTION)
        plain._client.close()
    assert server.bodies == [{"model": "m", "input": QUESTION}]
    assert len(peanuts) == 1


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


_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
    optional={
        "content": st.text(max_size=20),
        "thinking": st.text(max_size=20),
        "images": st.lists(st.just("AAAA"), max_size=2),
        "tool_name": st.just("f"),
        "tool_calls": st.lists(st.just(wire.function_call("f", a=[1, None])), max_size=2),
    },
)


@given(messages=st.lists(_message, min_size=1, max_size=6))
def test_generated_conversations_validate_with_blocks_in_them(messages):
    """As the SDK makes its bodies: a block at each place of the user's, and one in the system prompt; the rest is as it
    was, in its order, and what was passed in is untouched."""
    request = {"model": "m", "messages": messages, "stream": False, "tools": []}
    before = copy.deepcopy(request)
    places = {one.place: f"block {one.place}" for one in CHAT.messages(request) if one.role == "user"}
    injected, instructed = CHAT.insert(request, places), CHAT.instruct(request, "the block")
    assert request == before
    for place, (one, after) in enumerate(zip(before["messages"], injected["messages"], strict=True)):
        own = one.get("content")
        content = {"content": f"{own}\n\n{places[place]}" if own else places[place]} if place in places else {}
        assert after == {**one, **content}
    for body in (injected, instructed):
        images = [{**one, "images": [{"value": image} for image in one.get("images", [])]} for one in body["messages"]]
        ChatRequest(**{**body, "messages": [ollama.Message.model_validate(one) for one in images]})
    assert len(instructed["messages"]) - len(messages) == (not any(one["role"] == "system" for one in messages))


@given(prompt=st.text(max_size=20), system=st.none() | st.text(max_size=20), context=st.none() | st.just([1, 2]))
def test_generated_prompts_validate_with_blocks_in_them(prompt, system, context):
    """The prompt is all that was said; with a context the server has the rest."""
    request = {"model": "m", "prompt": prompt, "system": system, "context": context}
    before = dict(request)
    assert [one.text for one in GENERATE.messages(request)] == ([prompt] if prompt else [])
    GenerateRequest(**GENERATE.insert(request, {0: "the block"}))
    assert GenerateRequest(**GENERATE.instruct(request, "the block")).system.endswith("the block")
    assert GENERATE.is_stateful(request) is (context is not None)
    assert request == before
