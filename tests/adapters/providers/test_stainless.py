"""memlayer.adapters.stainless: what holds for the SDKs of OpenAI and Anthropic alike, in streams and in raw answers."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from anthropic import Anthropic, AnthropicBedrock, AnthropicVertex, AsyncAnthropic
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

from memlayer import workers, wrap
from memlayer.errors import InvalidInputError
from tests.adapters.loopback import Answer, Loopback
from tests.adapters.wires import anthropic as anthropic_wire
from tests.adapters.wires import openai as openai_wire

FACT = "I am allergic to peanuts"
QUESTION = "May I eat peanuts today, what do you say?"
REPLY = "No peanuts for you."
MESSAGES = [{"role": "user", "content": QUESTION}]


@dataclass(frozen=True)
class Api:
    """One kind of request of one SDK."""

    wire: Any
    client: Callable[..., Any]
    aclient: Callable[..., Any]
    create: Callable[..., Any]
    raw: Callable[..., Any]
    text: Callable[[Any], str | None]
    path: str

    def connect(self, server: Loopback, **options: Any) -> Any:
        return self.client(base_url=server.url + self.path, api_key="none", **options)

    def aconnect(self, server: Loopback, **options: Any) -> Any:
        return self.aclient(base_url=server.url + self.path, api_key="none", **options)


def _chat(client: Any, **more: Any) -> Any:
    return client.create(model="m", messages=MESSAGES, **more)


def _responses(client: Any, **more: Any) -> Any:
    return client.create(model="m", input=MESSAGES, **more)


def _anthropic(client: Any, **more: Any) -> Any:
    return client.create(model="m", max_tokens=9, messages=MESSAGES, **more)


APIS = {
    "chat": Api(
        openai_wire, OpenAI, AsyncOpenAI,
        lambda client, **more: _chat(client.chat.completions, **more),
        lambda client, **more: _chat(client.chat.completions.with_streaming_response, **more),
        lambda chunk: chunk.choices[0].delta.content, "/v1",
    ),
    "responses": Api(
        openai_wire, OpenAI, AsyncOpenAI,
        lambda client, **more: _responses(client.responses, **more),
        lambda client, **more: _responses(client.responses.with_streaming_response, **more),
        lambda event: event.delta if event.type == "response.output_text.delta" else None, "/v1",
    ),
    "anthropic": Api(
        anthropic_wire, Anthropic, AsyncAnthropic,
        lambda client, **more: _anthropic(client.messages, **more),
        lambda client, **more: _anthropic(client.messages.with_streaming_response, **more),
        lambda event: getattr(event.delta, "text", None) if event.type == "content_block_delta" else None, "",
    ),
}  # fmt: skip


@pytest.fixture(params=APIS)
def api(request) -> Api:
    return APIS[request.param]


@pytest.fixture
def bob(alice):
    """A user with one memory that fits the question."""
    alice.remember(FACT)
    return alice


def said(memory, *, since: int = 1) -> list[tuple[str, str]]:
    """What was remembered after the first memories."""
    return [(turn.role, turn.text) for turn in memory.history()][since:]


# ---------------------------------------------------------------- the client


@pytest.mark.parametrize("is_async", [False, True])
def test_the_client_is_of_the_same_type_and_shares_the_pool(api, bob, is_async):
    """Its class has the same name, its HTTP pool is the same object, and it has memory as `memlayer`."""
    with Loopback(api.wire.Chatbot(REPLY)) as server:
        client = (api.aconnect if is_async else api.connect)(server)
        cached = getattr(client, "chat", None) or client.messages  # made by the caller's client, and held by it
        wrapped = wrap(client, bob)
        own = type(client)
        assert isinstance(wrapped, own)
        assert (type(wrapped).__name__, type(wrapped).__qualname__) == (own.__name__, own.__qualname__)
        assert type(wrapped).__module__ == own.__module__
        assert wrapped._client is client._client
        assert wrapped.memlayer.health.ok
        assert not hasattr(client, "memlayer")
        again = getattr(wrapped, "chat", None) or wrapped.messages
        assert again is not cached
        assert again._client is wrapped
        assert type(wrap(client, bob)) is type(wrapped), "the subclass is made once"
        asyncio.run(client.close()) if is_async else client.close()


def test_copies_keep_the_memory_and_what_they_change(api, bob):
    """`copy` and `with_options` give clients of the same kind, with their own settings."""
    with Loopback(api.wire.Chatbot(REPLY)) as server, api.connect(server) as client:
        wrapped = wrap(client, bob)
        copied = wrapped.with_options(max_retries=7).copy(timeout=3.0)
        assert copied.memlayer is wrapped.memlayer
        assert type(copied) is type(wrapped)
        assert (copied.max_retries, copied.timeout, wrapped.max_retries) == (7, 3.0, client.max_retries)


def test_a_client_that_is_wrapped_again_has_the_second_memory_only(api, store, bob):
    """Nothing of the first user's goes out, and nothing is remembered for them."""
    other = store.user("carol")
    other.remember("I am allergic to peanuts and walnuts")
    with Loopback(api.wire.Chatbot(REPLY)) as server, api.connect(server) as client:
        api.create(wrap(wrap(client, bob), other))
        assert str(server.bodies).count("<memory-") == 1
        assert "walnuts" in str(server.bodies)
    assert said(bob) == []
    assert said(other) == [("user", QUESTION), ("assistant", REPLY)]


@pytest.mark.parametrize(
    "thing", [OpenAI, Anthropic, "chat", "messages"], ids=["a class", "another class", "a resource", "the other's"]
)
def test_what_is_no_client_is_refused(alice, thing):
    """A class or a part of a client is an error when it is wrapped, not when it is used."""
    with OpenAI(api_key="none") as one, Anthropic(api_key="none") as other:
        parts = {"chat": one.chat, "messages": other.messages}
        with pytest.raises(InvalidInputError, match="wrap takes a client"):
            wrap(parts.get(thing, thing) if isinstance(thing, str) else thing, alice)


@pytest.mark.parametrize("deployment", [None, "gpt-deployed"])
def test_azures_urls_are_known(bob, embedder, deployment):
    """The model or the deployment stands in the URL; chat and responses have memory all the same."""
    with (
        Loopback(openai_wire.Chatbot(REPLY)) as server,
        AzureOpenAI(
            azure_endpoint=server.url, azure_deployment=deployment, api_key="none", api_version="2025-04-01-preview"
        ) as client,
    ):
        wrapped = wrap(client, bob)
        assert isinstance(wrapped.with_options(timeout=3.0), AzureOpenAI)
        _chat(wrapped.with_options(timeout=3.0).chat.completions)
        _responses(wrapped.responses)
        assert "/openai/deployments/" in server.requests[0].path
        assert [str(body).count("<memory-") for body in server.bodies] == [1, 1]
    assert said(bob) == [("user", QUESTION), ("assistant", REPLY)] * 2


def test_azures_async_client_has_memory(bob):
    """As the sync one."""

    async def run(server):
        async with AsyncAzureOpenAI(azure_endpoint=server.url, api_key="none", api_version="2024-10-21") as client:
            await _chat(wrap(client, bob).chat.completions)

    with Loopback(openai_wire.Chatbot(REPLY)) as server:
        asyncio.run(run(server))
        assert "/openai/deployments/m/chat/completions" in server.requests[0].path
        assert str(server.bodies).count("<memory-") == 1
    assert said(bob) == [("user", QUESTION), ("assistant", REPLY)]


def test_clients_for_other_clouds_have_memory(bob):
    """Anthropic's clients for Bedrock and Vertex are no subclasses of `Anthropic`, and have the same way out."""
    pytest.importorskip("google.auth")
    pytest.importorskip("botocore")
    bot = anthropic_wire.Chatbot(REPLY)
    with Loopback(lambda request: bot(replace(request, path="/v1/messages"))) as server:
        for client in (
            AnthropicBedrock(aws_region="eu-west-1", aws_access_key="none", aws_secret_key="none", base_url=server.url),
            AnthropicVertex(region="europe-west1", project_id="p", access_token="none", base_url=server.url),
        ):
            with client:
                wrapped = wrap(client, bob).with_options(timeout=3.0)
                assert isinstance(wrapped, type(client))
                assert _anthropic(wrapped.messages).content[0].text == REPLY
        paths = [request.path for request in server.requests]
        assert paths == [
            "/model/m/invoke",
            "/projects/p/locations/europe-west1/publishers/anthropic/models/m:rawPredict",
        ]
        assert [str(body).count("<memory-") for body in server.bodies] == [1, 1]
    assert said(bob) == [("user", QUESTION), ("assistant", REPLY)] * 2


# ---------------------------------------------------------------- streams that break off


def _left(stream, api):
    for event in stream:
        if text := api.text(event):
            return text
    raise AssertionError("there was no text")


def _leave(stream, api):
    return _left(stream, api)  # and nobody holds the stream any more


def _close(stream, api):
    text = _left(stream, api)
    stream.close()
    return text


def _with(stream, api):
    with stream:
        return _left(stream, api)


def _hold(stream, api):
    """A cycle, as a traceback or a framework may make one."""
    stream.itself = stream
    return _left(stream, api)


def _next(stream, api):
    text = None
    while not text:
        text = api.text(next(stream))
    stream.close()
    return text


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("how", [_leave, _close, _with, _hold, _next], ids=lambda how: how.__name__)
def test_a_stream_that_is_left(api, bob, embedder, how, keep):
    """The user's turn is kept; the partial reply is dropped, or kept and marked where that is asked for."""
    with Loopback(api.wire.Chatbot(REPLY)) as server, api.connect(server) as client:
        begun = how(api.create(wrap(client, bob, keep_partial=keep), stream=True), api)
        if how is _hold:
            gc.collect()
        workers.finish(bob.breaker, seconds=10)
    assert begun == "No"
    assert said(bob) == [("user", QUESTION), *([("assistant", "No")] if keep else [])]
    assert bob.history()[-1].metadata == ({"incomplete": True} if keep else {})
    assert embedder.query_calls == 1


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("error", [False, True], ids=["connection", "event"])
def test_a_stream_that_fails(api, bob, keep, error):
    """The SDK's error comes out where there is one; the user's turn is kept, and the partial reply as was asked for."""
    bot = api.wire.Chatbot(REPLY, cut=2, error=error)
    tells = error and api is APIS["responses"]  # an event that says so, and then the end
    with Loopback(bot) as server, api.connect(server) as client:
        stream = api.create(wrap(client, bob, keep_partial=keep), stream=True)
        if tells:
            assert [event.type for event in stream][-1] == "response.failed"
        else:
            with pytest.raises(Exception, match=r"."):
                list(stream)
    assert said(bob) == [("user", QUESTION), *([("assistant", "No peanuts")] if keep else [])]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("how", ["leave", "close", "with", "cancel"])
def test_an_async_stream_that_is_left(api, bob, how, keep):
    """As a sync one; a task that is cancelled while it waits for the next event too."""
    hold = threading.Event()

    def slow(request):
        answer = api.wire.Chatbot(REPLY)(request)
        return Answer(_then_wait(answer.body, hold), kind=answer.kind)

    async def first(stream):
        async for event in stream:
            if text := api.text(event):
                return text
        raise AssertionError("there was no text")

    async def read_on(stream, seen):
        async for event in stream:
            if text := api.text(event):
                seen.set_result(text)

    async def run(server):
        async with api.aconnect(server) as client:
            stream = await api.create(wrap(client, bob, keep_partial=keep), stream=True)
            if how == "cancel":
                seen = asyncio.get_running_loop().create_future()
                task = asyncio.create_task(read_on(stream, seen))
                await seen
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif how == "with":
                async with stream:
                    await first(stream)
            else:
                await first(stream)
                if how == "close":
                    await stream.close()
            if how != "leave":
                assert said(bob)[:1] == [("user", QUESTION)], "committed before the caller goes on"
            del stream

    with Loopback(slow if how == "cancel" else api.wire.Chatbot(REPLY)) as server:
        try:
            asyncio.run(run(server))
        finally:
            hold.set()
    gc.collect()
    workers.finish(bob.breaker, seconds=10)
    assert said(bob) == [("user", QUESTION), *([("assistant", "No")] if keep else [])]


def _then_wait(parts, hold):
    """The events up to the first one with text; nothing more comes until `hold` is set."""
    for part in parts:
        yield part
        if b"No" in part:
            hold.wait(10)


def test_a_stream_that_is_left_after_its_last_words_is_whole(api, bob):
    """Some callers stop at the event that says that the reply has ended, and not at the stream's end."""
    with Loopback(api.wire.Chatbot(REPLY)) as server, api.connect(server) as client:
        stream = api.create(wrap(client, bob), stream=True)
        for event in stream:
            if getattr(event, "type", None) in ("response.completed", "message_stop"):
                break
            if getattr(event, "choices", None) and event.choices[0].finish_reason:
                break
        stream.close()
    assert said(bob) == [("user", QUESTION), ("assistant", REPLY)]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_that_ends_without_saying_so_is_whole(api, bob, is_async):
    """As some compatible servers end theirs. The SDK closes the HTTP response before it says that there is no more."""
    ends = (b'"finish_reason": "stop"', b"event: response.completed", b"event: message_delta", b"event: message_stop")

    def at_once(request):
        answer = api.wire.Chatbot(REPLY)(request)
        parts = [part for part in answer.body if not any(end in part for end in ends)]
        return Answer(b"".join(parts), kind=answer.kind)

    async def run(server):
        async with api.aconnect(server) as client:
            async for _ in await api.create(wrap(client, bob), stream=True):
                pass

    with Loopback(at_once) as server:
        if is_async:
            asyncio.run(run(server))
        else:
            with api.connect(server) as client:
                for _ in api.create(wrap(client, bob), stream=True):
                    pass
    assert said(bob) == [("user", QUESTION), ("assistant", REPLY)]


def test_a_stream_that_nobody_reads_keeps_the_users_turn(api, bob):
    """Closed before its first event."""
    with Loopback(api.wire.Chatbot(REPLY)) as server, api.connect(server) as client:
        api.create(wrap(client, bob), stream=True).close()
    assert said(bob) == [("user", QUESTION)]


# ---------------------------------------------------------------- raw answers


def test_a_raw_body_that_is_read_by_lines_is_not_seen(api, bob):
    """The user's turn is remembered, once; the caller gets every byte."""
    with Loopback(api.wire.Chatbot(REPLY)) as server, api.connect(server) as client:
        with api.raw(wrap(client, bob)) as answer:
            assert REPLY in "".join(answer.iter_lines())
        with api.raw(wrap(client, bob, session="two"), stream=True) as answer:
            assert "peanuts" in "".join(answer.iter_lines())
    assert [str(body).count("<memory-") for body in server.bodies] == [1, 1]
    assert said(bob) == [("user", QUESTION)] * 2


def test_a_raw_body_that_is_not_read_keeps_the_users_turn(api, bob):
    """Left alone until the end of the `with`."""
    with Loopback(api.wire.Chatbot(REPLY)) as server, api.connect(server) as client, api.raw(wrap(client, bob)):
        pass
    assert said(bob) == [("user", QUESTION)]


def test_an_async_raw_body_that_is_not_read_keeps_the_users_turn(api, bob):
    """As a sync one."""

    async def run(server):
        async with api.aconnect(server) as client, api.raw(wrap(client, bob)):
            pass

    with Loopback(api.wire.Chatbot(REPLY)) as server:
        asyncio.run(run(server))
    assert said(bob) == [("user", QUESTION)]


def test_a_request_that_fails_is_not_remembered(api, bob):
    """The SDK's own error comes out."""
    with (
        Loopback(api.wire.Chatbot(REPLY, failures=9, status=400)) as server,
        api.connect(server) as client,
        pytest.raises(Exception, match="400"),
    ):
        api.create(wrap(client, bob))
    assert said(bob) == []


def test_memory_that_fails_does_not_break_the_chat(api, bob, embedder, monkeypatch):
    """The very same request goes out, and the reply comes back."""

    def broken(_text):
        raise RuntimeError("no embedder today")

    with Loopback(api.wire.Chatbot(REPLY)) as server, api.connect(server) as client:
        api.create(client)
        wrapped = wrap(client, bob, on_error="ignore")
        monkeypatch.setattr(embedder, "embed_query", broken)
        api.create(wrapped)
        assert server.bodies[0] == server.bodies[1]
        assert not wrapped.memlayer.health.ok
