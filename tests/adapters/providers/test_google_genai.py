"""Google Gen AI with memory: every path of the real SDK against a server on loopback."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import itertools
import json
import threading

import pytest
from google import genai
from google.genai import errors, types
from hypothesis import given
from hypothesis import strategies as st

from memlayer import workers, wrap
from memlayer.adapters.google_genai import CONTENTS
from memlayer.errors import InvalidInputError
from memlayer.prompt import is_block
from tests.adapters.loopback import Answer, Loopback
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
    if not inspect.iscoroutinefunction(path):
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


@pytest.mark.parametrize("how", ["wrapped.aio", "wrap(aio)"])
def test_the_async_half_alone_has_memory_and_keeps_its_connections(peanuts, how):
    """`wrap(genai.Client(), memory).aio` and `wrap(genai.Client().aio, memory)`, with nobody who holds the rest."""

    async def main(url):
        if how == "wrapped.aio":
            aio = wrap(client(url), peanuts, session="s1").aio
        else:
            aio = wrap(client(url).aio, peanuts, session="s1")
        assert isinstance(aio, genai.client.AsyncClient)
        assert aio.memlayer.health.ok
        gc.collect()
        await asyncio.sleep(0.05)  # what a finalizer put on the loop
        answer = await aio.models.generate_content(model="m", contents=QUESTION)
        await aio.aclose()
        return answer.text

    with Loopback(wire.Chatbot(REPLY)) as server:
        assert asyncio.run(main(server.url)) == REPLY
    assert len(blocks(server.bodies[0])) == 1
    assert said(peanuts) == BOTH


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


# The oldest SDK reads the types themselves, not their names.
weather.__annotations__ = {"city": str, "return": str}
TOOLS = types.GenerateContentConfig(tools=[weather])


def loop_whole(c):
    answer = c.models.generate_content(model="m", contents=QUESTION, config=TOOLS)
    return answer.text, answer.automatic_function_calling_history or []


def loop_streamed(c):
    chunks = list(c.models.generate_content_stream(model="m", contents=QUESTION, config=TOOLS))
    return "".join(chunk.text or "" for chunk in chunks), chunks


def loop_chat(c):
    chat = c.chats.create(model="m", config=TOOLS)
    return chat.send_message(QUESTION).text, chat.get_history()


def loop_chat_streamed(c):
    chat = c.chats.create(model="m", config=TOOLS)
    return "".join(chunk.text or "" for chunk in chat.send_message_stream(QUESTION)), chat.get_history()


async def aloop_whole(c):
    answer = await c.aio.models.generate_content(model="m", contents=QUESTION, config=TOOLS)
    return answer.text, answer.automatic_function_calling_history or []


async def aloop_chat(c):
    chat = c.aio.chats.create(model="m", config=TOOLS)
    return (await chat.send_message(QUESTION)).text, chat.get_history()


async def aloop_chat_streamed(c):
    chat = c.aio.chats.create(model="m", config=TOOLS)
    stream = await chat.send_message_stream(QUESTION)
    return "".join([chunk.text or "" async for chunk in stream]), chat.get_history()


LOOPS = [loop_whole, loop_streamed, loop_chat, loop_chat_streamed, aloop_whole, aloop_chat, aloop_chat_streamed]


@pytest.mark.filterwarnings("ignore:Direct use of automatic function calling")
@pytest.mark.parametrize("path", LOOPS, ids=lambda path: path.__name__)
def test_automatic_function_calling_is_one_turn(peanuts, embedder, path):
    """Each request of the loop carries the block; one recall, the user's turn once, the last reply; no block in what
    the caller is shown of the loop."""
    bot = wire.Chatbot(wire.whole("I shall look. ", wire.function_call("weather", city="Lisbon")), REPLY)
    with Loopback(bot) as server, client(server.url) as plain:
        text, history = run(path, wrap(plain, peanuts, session="s1"))
    assert text.endswith(REPLY)
    first, second = server.bodies
    assert blocks(first) == blocks(second)
    assert len(blocks(second)) == 1
    assert "peanut rain in Lisbon" in wire.shown(second)
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1
    assert "<memory-" not in "".join(one.model_dump_json() for one in history)


# ---------------------------------------------------------------- replies in several requests

continues = pytest.mark.skipif(not hasattr(types.FinishReason, "CONTINUATION"), reason="google-genai before 3")


def part_of_reply(text, token="QUFB", finish="CONTINUATION"):
    return wire.whole(text, finish=finish, continuationToken=token)


@continues
@pytest.mark.parametrize("path", SYNC + ASYNC, ids=lambda path: path.__name__)
def test_automatic_continuation_is_one_turn(peanuts, embedder, path):
    """The SDK asks on twice where the reply was cut: the same block each time, one recall, the whole reply."""
    bot = wire.Chatbot(part_of_reply("Better "), part_of_reply("not, ", "QkJC"), "no peanuts.")
    with Loopback(bot) as server, client(server.url) as plain:
        assert run(path, wrap(plain, peanuts, session="s1")) == REPLY
    assert [body.get("continuationToken") for body in server.bodies] == [None, "QUFB", "QkJC"]
    assert [len(blocks(body)) for body in server.bodies] == [1, 1, 1]
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


@continues
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("cut", [None, 1])
@pytest.mark.parametrize("path", [streamed, chat_streamed, astreamed, achat_streamed], ids=lambda path: path.__name__)
def test_a_stream_that_the_sdk_takes_up_again_is_one_turn(peanuts, path, cut, keep):
    """It ends after a token, without an end or with an error; what was said before the token is in the reply once."""
    bot = wire.Chatbot(part_of_reply("Better ", finish=None), "not, no peanuts.", cut=cut)

    def answer(request):
        if len(server.requests) > 1:
            bot._cut = None
        return bot(request)

    with Loopback(answer) as server, client(server.url) as plain:
        assert run(path, wrap(plain, peanuts, session="s1", keep_partial=keep)) == REPLY
    assert len(server.bodies) == 2
    assert said(peanuts) == BOTH


@continues
def test_the_rest_of_a_reply_whose_beginning_is_not_known_is_not_remembered(peanuts):
    """A token from another process: half a reply is none, and the user's turn is kept."""
    with Loopback(wire.Chatbot("not, no peanuts.")) as server, client(server.url) as plain:
        wrap(plain, peanuts, session="s1").models.generate_content(
            model="m", contents=QUESTION, config={"continuation_token": b"AAA"}
        )
    assert said(peanuts) == BOTH[:1]


# ---------------------------------------------------------------- what is no reply


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


def test_a_stream_that_nobody_holds_any_more_keeps_the_users_turn(peanuts):
    """The caller breaks out of its loop, without closing anything."""
    with Loopback(wire.Chatbot(REPLY)) as server, client(server.url) as plain:
        for _ in wrap(plain, peanuts, session="s1").models.generate_content_stream(model="m", contents=QUESTION):
            break
        gc.collect()
        workers.finish(peanuts.breaker, seconds=10)
    assert said(peanuts) == BOTH[:1]


@pytest.mark.parametrize("way", ["closed", "dropped", "cancelled"])
def test_an_async_stream_that_is_left_keeps_the_users_turn(peanuts, way):
    """Closed after its first event; let go of; or cancelled while the next one is waited for."""
    arrived = asyncio.Event()

    async def read(stream):
        async for _ in stream:
            arrived.set()

    async def main(url):
        plain = client(url)
        c = wrap(plain, peanuts, session="s1")
        stream = await c.aio.models.generate_content_stream(model="m", contents=QUESTION)
        if way == "cancelled":
            task = asyncio.create_task(read(stream))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert (await anext(stream)).text
            if way == "closed":
                await stream.aclose()
        del stream
        await asyncio.sleep(0)
        await c.aio.aclose()
        c.close()

    def slowly(request):
        reply = bot(request)

        def events():
            first, *_ = reply.body
            yield first
            if way == "cancelled":
                left.wait(10)

        return Answer(events(), kind=reply.kind)

    bot, left = wire.Chatbot(REPLY), threading.Event()
    with Loopback(slowly) as server:
        asyncio.run(asyncio.wait_for(main(server.url), 20))
        left.set()
    workers.finish(peanuts.breaker, seconds=10)
    assert said(peanuts) == BOTH[:1]


@pytest.mark.parametrize("path", [streamed, chat_streamed, astreamed, achat_streamed], ids=lambda path: path.__name__)
def test_a_stream_that_breaks_keeps_the_users_turn(peanuts, path):
    """The connection is cut in the middle; the caller sees the same error as without memory."""
    kinds = []
    for memory in (None, peanuts):
        with Loopback(wire.Chatbot(REPLY, cut=2)) as server, client(server.url) as plain:
            with pytest.raises(Exception, match=r".+") as caught:
                run(path, plain if memory is None else wrap(plain, memory, session="s1"))
            kinds.append(caught.type)
    assert kinds[0] is kinds[1]
    assert said(peanuts) == BOTH[:1]


# ---------------------------------------------------------------- conversations and shapes


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_chat_keeps_its_beginning_and_is_not_told_what_it_shows(peanuts, embedder, stream):
    """Each request begins with the one before it, block and all; a reply that stands in the chat, though in pieces, is
    in no block."""
    questions = [QUESTION, "Better not what, about peanuts?", "Not even a few peanuts?"]
    with Loopback(wire.Chatbot(REPLY)) as server, client(server.url) as plain:
        chat = wrap(plain, peanuts, session="s1").chats.create(model="m")
        for question in questions:
            if stream:
                assert "".join(chunk.text or "" for chunk in chat.send_message_stream(question)) == REPLY
            else:
                assert chat.send_message(question).text == REPLY
        assert "<memory-" not in "".join(content.model_dump_json() for content in chat.get_history())
    for earlier, later in itertools.pairwise(server.bodies):
        assert later["contents"][: len(earlier["contents"])] == earlier["contents"]
    assert [len(blocks(body)) for body in server.bodies] == [1, 1, 1]
    assert REPLY not in "".join(blocks(server.bodies[-1]))
    assert said(peanuts) == [turn for question in questions for turn in (("user", question), ("assistant", REPLY))]
    assert embedder.query_calls == 3


def test_signatures_of_thoughts_go_back_as_they_came(peanuts):
    """They stand in a part of the model's; the next request has that part, and no text of it is taken for a reply."""
    bot = wire.Chatbot(wire.whole(wire.text("hm", thought=True), wire.text(REPLY, signature="QUFB")), "Yes.")
    with Loopback(bot) as server, client(server.url) as plain:
        chat = wrap(plain, peanuts, session="s1").chats.create(model="m")
        chat.send_message(QUESTION)
        chat.send_message("Are you sure about the peanuts?")
    assert server.bodies[1]["contents"][1]["parts"] == [
        {"text": "hm", "thought": True}, {"text": REPLY, "thoughtSignature": "QUFB"},
    ]  # fmt: skip
    assert said(peanuts)[:2] == BOTH


IMAGE = types.Part.from_bytes(data=b"abc", mime_type="image/png")
ASKED = types.Part(text=QUESTION)
FORMS = {
    "str": QUESTION,
    "part": ASKED,
    "content": types.Content(role="user", parts=[IMAGE, ASKED]),
    "content without role": types.Content(parts=[ASKED]),
    "dict": {"role": "user", "parts": [{"text": QUESTION}]},
    "part dict": {"text": QUESTION},
    "file first": [types.File(uri="https://example.com/f", mime_type="text/plain"), QUESTION],
    "strings": [QUESTION],
    "parts": [ASKED, IMAGE],
    "contents": [types.Content(role="user", parts=[ASKED]), {"role": "model", "parts": [{"text": "Hm?"}]},
                 types.Content(role="user", parts=[ASKED])],
    "results": [types.Content(role="user", parts=[ASKED]),
                types.Content(role="model", parts=[types.Part.from_function_call(name="f", args={})]),
                types.Content(role="user", parts=[types.Part.from_function_response(name="f", response={"a": 1})])],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_contents_has_memory_and_stays_as_it_was(peanuts, embedder, form):
    """Whatever the SDK takes: one block behind the parts of the latest question, the rest as without memory, and the
    caller's own objects as they were."""
    contents, before = FORMS[form], copy.deepcopy(FORMS[form])
    config = {"system_instruction": "Be kind."}
    with Loopback(wire.Chatbot(REPLY)) as server, client(server.url) as plain:
        bare = plain.models.generate_content(model="m", contents=contents, config=config)
        answer = wrap(plain, peanuts, session="s1").models.generate_content(model="m", contents=contents, config=config)
    assert type(answer) is type(bare)
    assert contents == before
    assert config == {"system_instruction": "Be kind."}
    without, body = server.bodies
    [block] = blocks(body)
    asked = next(content for content in body["contents"] if {"text": block} in content["parts"])
    assert asked["parts"].pop() == {"text": block}
    assert body == without
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


@pytest.mark.parametrize("path", SYNC + ASYNC, ids=lambda path: path.__name__)
def test_vertex_has_memory_too(peanuts, embedder, path):
    """Its paths are others, and its bodies the same."""
    with (
        Loopback(wire.Chatbot(REPLY)) as server,
        genai.Client(vertexai=True, api_key="none", http_options={"base_url": server.url}) as plain,
    ):
        assert run(path, wrap(plain, peanuts, session="s1")) == REPLY
    [request] = server.requests
    assert "/publishers/google/models/m:" in request.path
    assert len(blocks(request.body)) == 1
    assert said(peanuts) == BOTH
    assert embedder.query_calls == 1


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
    assert len(server.bodies) == 2
    assert "<memory-" not in json.dumps(server.bodies)
    assert len(peanuts) == 1


@pytest.mark.filterwarnings("ignore:.*[Ii]nteractions:UserWarning")
def test_interactions_which_google_keeps_are_left_as_they_are(peanuts):
    """A client of its own, for conversations on the server: nothing is added, nothing remembered."""
    kept = {"id": "i1", "object": "interaction", "status": "completed", "model": "m", "outputs": [],
            "created": "2026-01-01T00:00:00Z", "updated": "2026-01-01T00:00:00Z"}  # fmt: skip
    with Loopback(lambda _: Answer(kept)) as server, client(server.url) as plain:
        assert wrap(plain, peanuts, session="s1").interactions.create(model="m", input=QUESTION).id == "i1"
    assert server.bodies == [{"model": "m", "input": QUESTION}]
    assert said(peanuts) == []


def test_wrapping_twice_and_what_is_no_client(peanuts, store):
    """The last memory counts; a part of a client is refused."""
    with Loopback(wire.Chatbot(REPLY)) as server, client(server.url) as plain:
        bob = store.user("bob")
        assert whole(wrap(wrap(plain, peanuts), bob, session="s1")) == REPLY
        assert said(bob) == BOTH
        assert wrap(plain, bob).memlayer.health.ok
        for thing in (plain.models, genai.Client, plain.chats.create(model="m")):
            with pytest.raises(InvalidInputError, match="Client"):
                wrap(thing, bob)


# ---------------------------------------------------------------- bodies

_name = st.sampled_from(["f", "weather"])
_data = st.sampled_from(["AAAA", "QUFB"])
_part = st.one_of(
    st.builds(lambda text: {"text": text}, st.text(max_size=20)),
    st.builds(lambda text, data: {"text": text, "thought": True, "thoughtSignature": data}, st.text(), _data),
    st.builds(lambda text, data: {"text": text, "thoughtSignature": data}, st.text(max_size=20), _data),
    st.builds(lambda data: {"inlineData": {"mimeType": "image/png", "data": data}}, _data),
    st.just({"fileData": {"fileUri": "gs://b/f", "mimeType": "text/plain"}}),
    st.builds(lambda name: {"functionCall": {"name": name, "args": {"a": 1}}, "thoughtSignature": "AAAA"}, _name),
    st.builds(lambda name: {"functionResponse": {"name": name, "response": {"a": [1, None]}}}, _name),
    st.just({"executableCode": {"code": "1", "language": "PYTHON"}}),
    st.just({"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}}),
)
_content = st.fixed_dictionaries(
    {"parts": st.lists(_part, max_size=4)}, optional={"role": st.sampled_from(["user", "model", "function"])}
)
_request = st.fixed_dictionaries(
    {"contents": st.lists(_content, min_size=1, max_size=6)},
    optional={
        "systemInstruction": st.just({"role": "user", "parts": [{"text": "Be kind."}]}),
        "cachedContent": st.just("cachedContents/1"),
        "generationConfig": st.just({"temperature": 0.5}),
    },
)


@given(request=_request)
def test_every_body_validates_against_the_sdks_own_types(request):
    """Over generated conversations: with a block at each place there is, and one in the system instruction; what was
    there is there in its order, and what was passed in is untouched."""
    before = copy.deepcopy(request)
    messages = CONTENTS.messages(request)
    places = {message.place: f"block {message.place}" for message in messages if message.role == "user"}
    injected = CONTENTS.insert(request, places)
    instructed = CONTENTS.instruct(request, "the block")
    assert request == before
    for place, (content, after) in enumerate(zip(before["contents"], injected["contents"], strict=True)):
        added = [{"text": places[place]}] if place in places else []
        assert after == {**content, "parts": content["parts"] + added}
        types.Content.model_validate(after)
    assert {**injected, "contents": None} == {**before, "contents": None}
    if "cachedContent" in before:
        assert instructed is None
    else:
        system = types.Content.model_validate(instructed["systemInstruction"])
        assert system.parts[-1].text == "the block"
        assert len(system.parts) == 1 + ("systemInstruction" in before)


@given(request=_request)
def test_what_counts_as_said(request):
    """A message of the user's has their own texts and no reasoning; a result of a tool alone is nobody's words; the
    pieces of a reply are one message."""
    messages = CONTENTS.messages(request)
    roles = [message.role for message in messages]
    assert not any(one == two == "assistant" for one, two in itertools.pairwise(roles))
    for message in messages:
        content = request["contents"][message.place]
        texts = [part["text"] for part in content["parts"] if part.get("text") and "thought" not in part]
        if message.role == "user":
            assert message.text == "\n".join(texts)
            assert texts or not any("functionResponse" in part for part in content["parts"])
        elif message.role == "assistant":
            assert content["role"] == "model"
            assert message.text.endswith("".join(texts))
        else:
            assert message.text == ""
