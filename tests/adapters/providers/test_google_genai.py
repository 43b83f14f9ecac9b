"""Google Gen AI with memory: every path of the real SDK against a server on loopback."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest
from google import genai
from google.genai import errors, types

from memlayer import workers, wrap
from memlayer.adapters.google_genai import CONTENTS
from memlayer.errors import InvalidInputError
from memlayer.prompt import is_block
from tests.adapters.loopback import Loopback
from tests.adapters.wires import google_genai as wire

# google-genai's own, where aiohttp is installed; seen with 3.6.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

FACT = "I am allergic to peanuts"
QUESTION = "What about peanuts, can I eat them?"
REPLY = "Better not, no peanuts."


@pytest.fixture
def peanuts(alice):
    alice.remember(FACT, session="monday")
    return alice


def client(url, **options):
    return genai.Client(api_key="none", http_options={"base_url": url, **options})


def said(memory, session="s1"):
    return [(turn.role, turn.text) for turn in memory.history(session=session)]


def blocks(body):
    return [text for text in wire.parts(body) if is_block(text)]


BOTH = [("user", QUESTION), ("assistant", REPLY)]
CONFIG = types.GenerateContentConfig(temperature=0.5)


def whole(c):
    return c.models.generate_content(model="m", contents=QUESTION, config=CONFIG).text


def streamed(c):
    return "".join(chunk.text or "" for chunk in c.models.generate_content_stream(model="m", contents=QUESTION))


def chat(c):
    return c.chats.create(model="m").send_message(QUESTION).text


def chat_streamed(c):
    return "".join(chunk.text or "" for chunk in c.chats.create(model="m").send_message_stream(QUESTION))


async def awhole(c):
    return (await c.aio.models.generate_content(model="m", contents=QUESTION)).text


async def astreamed(c):
    return "".join([chunk.text or "" async for chunk in await c.aio.models.generate_content_stream(
        model="m", contents=QUESTION)])  # fmt: skip


async def achat(c):
    return (await c.aio.chats.create(model="m").send_message(QUESTION)).text


async def achat_streamed(c):
    return "".join(
        [chunk.text or "" async for chunk in await c.aio.chats.create(model="m").send_message_stream(QUESTION)]
    )


SYNC = [whole, streamed, chat, chat_streamed]
ASYNC = [awhole, astreamed, achat, achat_streamed]


def run(path, c):
    """A path's reply; an async one in a loop of its own, with the connections closed there."""
    if path in SYNC:
        return path(c)

    async def once():
        try:
            return await path(c)
        finally:
            await c.aio.aclose()

    return asyncio.run(once())


@pytest.mark.parametrize("path", SYNC + ASYNC, ids=lambda path: path.__name__)
def test_every_path_injects_once_captures_once_and_asks_once(peanuts, embedder, path):
    """One block on the wire, behind the user's words; one turn of each side; one recall; the SDK's own reply."""
    with Loopback(wire.Chatbot(REPLY)) as server, client(server.url) as plain:
        assert run(path, wrap(plain, peanuts, session="s1")) == REPLY
    [body] = server.bodies
    assert len(blocks(body)) == 1
    assert wire.parts(body)[0] == QUESTION
    assert FACT in blocks(body)[0]
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


@pytest.mark.parametrize("path", SYNC + ASYNC, ids=lambda path: path.__name__)
def test_the_callers_client_stays_without_memory(peanuts, path):
    """It sends what it was told, before and after it was wrapped, and keeps its connections when the other one goes."""
    with Loopback(wire.Chatbot(REPLY)) as server, client(server.url) as plain:
        wrapped = wrap(plain, peanuts, session="s1")
        assert isinstance(wrapped, genai.Client)
        assert type(wrapped).__name__ == "Client"
        del wrapped
        gc.collect()
        assert run(path, plain) == REPLY
    assert blocks(server.bodies[0]) == []
    assert said(peanuts) == []


def test_a_client_that_nobody_else_holds_keeps_its_connections(peanuts):
    """`wrap(genai.Client(), memory)`: the one inside lives as long as the one outside."""
    with Loopback(wire.Chatbot(REPLY)) as server:
        wrapped = wrap(client(server.url), peanuts, session="s1")
        gc.collect()
        assert whole(wrapped) == REPLY
        wrapped.close()


def test_retries_of_the_sdk_inject_once(peanuts, embedder):
    """The server fails first: the same block again, one recall, one turn."""
    options = types.HttpRetryOptions(attempts=3, initial_delay=0.01, max_delay=0.02, jitter=0)
    bot = wire.Chatbot(wire.failed(503), REPLY)
    with Loopback(bot) as server, client(server.url, retry_options=options) as plain:
        assert whole(wrap(plain, peanuts, session="s1")) == REPLY
    first, second = server.bodies
    assert first == second
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


@pytest.mark.parametrize("path", SYNC + ASYNC, ids=lambda path: path.__name__)
def test_a_request_that_fails_is_not_remembered(peanuts, path):
    """The provider's own error comes out, and the user will say it again."""
    with (
        Loopback(wire.Chatbot(wire.failed(400))) as server,
        client(server.url) as plain,
        pytest.raises(errors.APIError),
    ):
        run(path, wrap(plain, peanuts, session="s1"))
    assert said(peanuts) == []


def weather(city: str) -> str:
    """The weather of a city."""
    return f"peanut rain in {city}"


def test_automatic_function_calling_is_one_turn(peanuts, embedder):
    """Each request of the loop carries the block; one recall, the user's turn once, the last reply."""
    bot = wire.Chatbot(wire.whole(wire.function_call("weather", city="Lisbon")), REPLY)
    with Loopback(bot) as server, client(server.url) as plain:
        chat = wrap(plain, peanuts, session="s1").chats.create(
            model="m", config=types.GenerateContentConfig(tools=[weather])
        )
        assert chat.send_message(QUESTION).text == REPLY
        history = json.dumps([content.model_dump(mode="json") for content in chat.get_history()])
    first, second = server.bodies
    assert blocks(first) == blocks(second)
    assert len(blocks(second)) == 1
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert "<memory-" not in history


@pytest.mark.parametrize("reply", [wire.blocked(), wire.stopped("Bet")], ids=["blocked", "stopped"])
def test_what_a_filter_stops_is_not_remembered(peanuts, reply):
    """The user's turn is."""
    with Loopback(wire.Chatbot(reply)) as server, client(server.url) as plain:
        wrap(plain, peanuts, session="s1").models.generate_content(model="m", contents=QUESTION)
    assert said(peanuts) == BOTH[:1]


def test_of_several_candidates_the_first_counts_and_thoughts_are_no_text(peanuts):
    """Reasoning and other candidates are not what was said."""
    thinking = wire.whole(wire.text("hm, peanuts", thought=True), REPLY)
    for reply in (wire.choices(REPLY, "Another."), thinking):
        with Loopback(wire.Chatbot(reply)) as server, client(server.url) as plain:
            wrap(plain, peanuts, session="s1").models.generate_content(model="m", contents=QUESTION)
        assert said(peanuts)[-1] == ("assistant", REPLY)


@pytest.mark.parametrize("keep", [False, True])
def test_a_stream_that_is_left_keeps_the_users_turn(peanuts, keep):
    """Closed in the middle; the partial reply is kept only where that is asked for."""
    with Loopback(wire.Chatbot(REPLY)) as server, client(server.url) as plain:
        stream = wrap(plain, peanuts, session="s1", keep_partial=keep).models.generate_content_stream(
            model="m", contents=QUESTION
        )
        first = next(iter(stream)).text
        stream.close()
        workers.finish(peanuts.breaker, seconds=10)
    assert said(peanuts) == [*BOTH[:1], *([("assistant", first)] if keep else [])]


def test_an_async_stream_that_is_left_keeps_the_users_turn(peanuts):
    """Closed after its first event."""

    async def main(url):
        c = wrap(client(url), peanuts, session="s1")
        stream = await c.aio.models.generate_content_stream(model="m", contents=QUESTION)
        assert (await anext(stream)).text
        await stream.aclose()
        await c.aio.aclose()
        c.close()

    with Loopback(wire.Chatbot(REPLY)) as server:
        asyncio.run(asyncio.wait_for(main(server.url), 20))
    workers.finish(peanuts.breaker, seconds=10)
    assert said(peanuts) == BOTH[:1]


def test_placement_system_and_cached_content(peanuts):
    """At the end of the system instruction; with cached content, which has its own, nothing is added."""
    with Loopback(wire.Chatbot(REPLY)) as server, client(server.url) as plain:
        c = wrap(plain, peanuts, placement="system")
        c.models.generate_content(model="m", contents=QUESTION, config={"system_instruction": "Be kind."})
        c.models.generate_content(model="m", contents=QUESTION, config={"cached_content": "cachedContents/1"})
    first, second = server.bodies
    assert first["systemInstruction"]["parts"][0]["text"] == "Be kind."
    assert is_block(first["systemInstruction"]["parts"][1]["text"])
    assert "<memory-" not in json.dumps(second)
    assert wire.parts(first) == [QUESTION]


def test_other_calls_have_no_memory(peanuts):
    """Counting and embedding are left alone."""
    with Loopback(wire.Chatbot(REPLY)) as server, client(server.url) as plain:
        c = wrap(plain, peanuts)
        c.models.count_tokens(model="m", contents=QUESTION)
        c.models.embed_content(model="m", contents=QUESTION)
    assert "<memory-" not in json.dumps(server.bodies)
    assert len(peanuts) == 1


def test_wrapping_twice_and_what_is_no_client(peanuts, store):
    """The last memory counts; a part of a client is refused."""
    with Loopback(wire.Chatbot(REPLY)) as server, client(server.url) as plain:
        bob = store.user("bob")
        assert whole(wrap(wrap(plain, peanuts), bob, session="s1")) == REPLY
        assert said(bob) == BOTH
        assert wrap(plain, bob).memlayer.health.ok
        with pytest.raises(InvalidInputError):
            wrap(plain.models, bob)


PARTS = [
    {"text": "peanuts?"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}, {"fileData": {"fileUri": "u"}},
    {"functionCall": {"name": "f", "args": {}}}, {"functionResponse": {"name": "f", "response": {"a": 1}}},
    {"text": "hm", "thought": True, "thoughtSignature": "AAAA"},
    {"executableCode": {"code": "1", "language": "PYTHON"}},
]  # fmt: skip


@pytest.mark.parametrize("role", ["user", "model", "function", None])
@pytest.mark.parametrize("number", range(len(PARTS)))
def test_every_body_validates_against_the_sdks_own_types(role, number):
    """With a block in it; and what was there is there in its order, untouched."""
    content = {"parts": [PARTS[number], PARTS[(number + 1) % len(PARTS)]], **({"role": role} if role else {})}
    request = {"contents": [content], "model": "m"}
    before = json.dumps(request)
    injected = CONTENTS.insert(request, {0: "the block"})
    assert json.dumps(request) == before
    [after] = injected["contents"]
    assert after["parts"] == [*content["parts"], {"text": "the block"}]
    types.Content.model_validate(after)
    [message] = CONTENTS.messages(request)
    assert message.role in ("user", "assistant", "tool")
    assert "hm" not in message.text
