"""memlayer.adapters.openai: what goes out and what is remembered, for every shape of request and reply."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter

from memlayer import wrap
from memlayer.adapters.openai import CHAT, RESPONSES
from memlayer.prompt import is_block
from tests.adapters.loopback import Answer, Loopback
from tests.adapters.wires import openai as wire

FACT = "I am allergic to peanuts"
QUESTION = "May I eat peanuts today, what do you say?"
REPLY = "No peanuts for you."
BOTH = [("user", QUESTION), ("assistant", REPLY)]
ASKED = {"role": "user", "content": QUESTION}
TOOLS = [("weather", {"city": "Oslo"})]
CHAT_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
RESPONSES_TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
PICTURE = "data:image/png;base64,AAAA"


@pytest.fixture
def bob(alice):
    """A user with one memory that fits the question."""
    alice.remember(FACT)
    return alice


def said(memory) -> list[tuple[str, str]]:
    """What was remembered after the first memory."""
    return [(turn.role, turn.text) for turn in memory.history()][1:]


def exchange(memory, bot, ask, **options) -> tuple[Any, list[Any]]:
    """What `ask` gives for a client with memory, and the bodies that it sent."""
    with Loopback(bot) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        return ask(wrap(client, memory, **options)), server.bodies


def chat(*messages: Any, **more: Any) -> Any:
    return lambda client: client.chat.completions.create(model="m", messages=list(messages), **more)


def responses(given: Any, **more: Any) -> Any:
    return lambda client: client.responses.create(model="m", input=given, **more)


def blocks(body: Any) -> int:
    return json.dumps(body).count("<memory-")


# ---------------------------------------------------------------- where the block goes


def test_chat_has_the_block_behind_the_users_words(bob):
    """A text part of its own in the latest message of the user's; everything else as it was."""
    system, before = {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "Hello."}
    first = {"role": "user", "content": "Hi"}
    _, [body] = exchange(bob, wire.Chatbot(REPLY), chat(system, first, before, ASKED))
    assert body["messages"][:3] == [system, first, before]
    own, block = body["messages"][3]["content"]
    assert own == {"type": "text", "text": QUESTION}
    assert block["type"] == "text"
    assert is_block(block["text"])


@pytest.mark.parametrize("given", [QUESTION, [ASKED], ({**ASKED, "type": "message"},)], ids=["str", "list", "tuple"])
def test_responses_have_the_block_behind_the_users_words(bob, given):
    """As a part `input_text`; a str becomes one item."""
    _, [body] = exchange(bob, wire.Chatbot(REPLY), responses(given, instructions="Be brief."))
    assert body["instructions"] == "Be brief."
    [item] = body["input"]
    own, block = item["content"]
    assert own == {"type": "input_text", "text": QUESTION}
    assert block["type"] == "input_text"
    assert is_block(block["text"])


def test_pictures_keep_their_place(bob):
    """The block stands behind all parts, and each part is what it was."""
    parts = [
        {"type": "image_url", "image_url": {"url": PICTURE}},
        {"type": "text", "text": QUESTION},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    items = [
        {"type": "input_text", "text": QUESTION},
        {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
    ]
    was = copy.deepcopy((parts, items))
    _, [body] = exchange(bob, wire.Chatbot(REPLY), chat({"role": "user", "content": parts}))
    assert body["messages"][0]["content"][:3] == parts
    _, [body] = exchange(bob, wire.Chatbot(REPLY), responses([{"role": "user", "content": items}]))
    assert body["input"][0]["content"][:2] == items
    assert was == (parts, items)
    assert said(bob) == BOTH * 2


def test_a_message_without_words_gets_no_block(bob, embedder):
    """A picture alone asks memory nothing; the reply is remembered."""
    parts = [{"type": "image_url", "image_url": {"url": PICTURE}}]
    _, [body] = exchange(bob, wire.Chatbot(REPLY), chat({"role": "user", "content": parts}))
    assert body["messages"] == [{"role": "user", "content": parts}]
    assert embedder.query_calls == 0
    assert said(bob) == [("assistant", REPLY)]


@pytest.mark.parametrize("role", ["system", "developer", None])
def test_chat_placement_system(bob, role):
    """The block stands at the end of the first system or developer message, or in one that is made for it."""
    given = [] if role is None else [{"role": role, "content": "Be brief."}]
    _, [body] = exchange(bob, wire.Chatbot(REPLY), chat(*given, ASKED), placement="system")
    assert body["messages"][-1] == ASKED
    head = body["messages"][0]
    assert head["role"] == (role or "system")
    assert is_block(head["content"] if role is None else head["content"][-1]["text"])
    if role is not None:
        assert head["content"][0] == {"type": "text", "text": "Be brief."}


@pytest.mark.parametrize("instructions", [None, "Be brief."])
def test_responses_placement_system(bob, instructions):
    """The block stands at the end of the instructions, and the input is as it was."""
    more = {} if instructions is None else {"instructions": instructions}
    _, [body] = exchange(bob, wire.Chatbot(REPLY), responses([ASKED], **more), placement="system")
    assert body["input"] == [ASKED]
    assert is_block(body["instructions"].removeprefix("Be brief.\n\n"))


@pytest.mark.parametrize("state", [
    {"previous_response_id": "resp_0"}, {"conversation": "conv_1"}, {"conversation": {"id": "conv_1"}},
    {"extra_body": {"previous_response_id": "resp_0"}},
], ids=str)  # fmt: skip
def test_what_openai_keeps_has_no_block(bob, embedder, state):
    """With a response or a conversation to go on from, the block is in the instructions of this one request."""
    if "conversation" in state:
        state = {"extra_body": state}  # the oldest SDKs do not know it yet
    _, [body] = exchange(bob, wire.Chatbot(REPLY), responses([ASKED], **state))
    assert body["input"] == [ASKED]
    assert is_block(body["instructions"])
    assert said(bob) == BOTH
    assert embedder.query_calls == 1


def test_results_of_tools_for_what_openai_keeps(bob, embedder):
    """A request that holds nothing of the user's has no block; the reply that ends the loop is remembered."""
    bot = wire.Chatbot(REPLY, tools=TOOLS)

    def loop(client):
        first = client.responses.create(model="m", input=[ASKED], tools=[RESPONSES_TOOL])
        result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "rain of peanuts"}
        return client.responses.create(model="m", input=[result], previous_response_id=first.id)

    answer, [first, second] = exchange(bob, bot, loop)
    assert answer.output_text == REPLY
    assert (blocks(first), blocks(second)) == (1, 0)
    assert said(bob) == BOTH
    assert embedder.query_calls == 1


# ---------------------------------------------------------------- one turn over several requests


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("words", ["", "Let me look."])
def test_a_chat_tool_loop_is_one_turn(bob, embedder, streams, words):
    """One recall, the user's turn once, the last reply once; the second request begins as the first one does."""
    bot = wire.Chatbot(REPLY, tools=TOOLS, says_with_tools=words)

    def loop(client):
        messages = [ASKED]
        for _ in range(2):
            how = {"model": "m", "messages": messages, "tools": [CHAT_TOOL]}
            if streams:
                with client.chat.completions.stream(**how) as stream:
                    message = stream.get_final_completion().choices[0].message
            else:
                message = client.chat.completions.create(**how).choices[0].message
            messages.append(message)  # the SDK's own object, as many programs do
            for call in message.tool_calls or []:
                messages.append({"role": "tool", "tool_call_id": call.id, "content": "rain of peanuts"})
        return message.content

    reply, [first, second] = exchange(bob, bot, loop)
    assert reply == REPLY
    assert second["messages"][:1] == first["messages"]
    assert [blocks(first), blocks(second)] == [1, 1]
    assert second["messages"][-1]["content"] == "rain of peanuts"
    assert said(bob) == BOTH
    assert embedder.query_calls == 1


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("words", ["", "Let me look."])
def test_a_responses_tool_loop_is_one_turn(bob, embedder, streams, words):
    """As with chat; reasoning and calls go back as they came."""
    bot = wire.Chatbot(REPLY, tools=TOOLS, says_with_tools=words, reasoning="hm, peanuts")

    def loop(client):
        items = [ASKED]
        for _ in range(2):
            how = {"model": "m", "input": items, "tools": [RESPONSES_TOOL]}
            if streams:
                with client.responses.stream(**how) as stream:
                    response = stream.get_final_response()
            else:
                response = client.responses.create(**how)
            items += response.output
            for item in response.output:
                if item.type == "function_call":
                    items.append({"type": "function_call_output", "call_id": item.call_id, "output": "rain of peanuts"})
        return response.output_text

    reply, [first, second] = exchange(bob, bot, loop)
    assert reply == REPLY
    assert second["input"][:1] == first["input"]
    assert [blocks(first), blocks(second)] == [1, 1]
    assert "reasoning" in [item.get("type") for item in second["input"]]
    assert said(bob) == BOTH
    assert embedder.query_calls == 1


def test_the_block_stays_on_later_turns(bob):
    """The second turn's messages begin with those of the first, byte for byte."""
    again = {"role": "user", "content": "And what about walnuts, may I eat those today?"}

    def talk(client):
        client.chat.completions.create(model="m", messages=[ASKED])
        client.chat.completions.create(model="m", messages=[ASKED, {"role": "assistant", "content": REPLY}, again])

    _, [first, second] = exchange(bob, wire.Chatbot(REPLY), talk)
    assert json.dumps(second["messages"]).startswith(json.dumps(first["messages"])[:-1])


# ---------------------------------------------------------------- what the reply is

STREAMS = pytest.mark.parametrize("streams", [False, True])


def _ask(api, streams, **more):
    """One question, read to its end."""

    def ask(client):
        if api == "chat":
            answer = client.chat.completions.create(model="m", messages=[ASKED], stream=streams, **more)
        else:
            answer = client.responses.create(model="m", input=[ASKED], stream=streams, **more)
        return list(answer) if streams else answer

    return ask


@STREAMS
@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("bot", [
    wire.Chatbot(REPLY, refusal="I cannot help with peanuts"), wire.Chatbot(REPLY, finish="content_filter"),
], ids=["refusal", "filter"])  # fmt: skip
def test_refusals_are_not_remembered(bob, api, streams, bot):
    """Nor is what a filter cut off; the user's turn is."""
    exchange(bob, bot, _ask(api, streams))
    assert said(bob) == BOTH[:1]


@STREAMS
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_reply_that_ran_out_of_tokens_is_remembered(bob, api, streams):
    """It is what the user saw."""
    exchange(bob, wire.Chatbot(REPLY, finish="length"), _ask(api, streams))
    assert said(bob) == BOTH


@STREAMS
def test_of_several_choices_the_first_is_remembered(bob, streams):
    """The others were drafts."""
    exchange(bob, wire.Chatbot(REPLY), _ask("chat", streams, n=3))
    assert said(bob) == BOTH


@STREAMS
def test_reasoning_is_not_remembered(bob, streams):
    """Only what the assistant says."""
    exchange(bob, wire.Chatbot(REPLY, reasoning="hm, peanuts"), _ask("responses", streams))
    assert said(bob) == BOTH


@STREAMS
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_call_alone_is_not_remembered(bob, api, streams):
    """The loop that goes on elsewhere has its reply there."""
    exchange(bob, wire.Chatbot(REPLY, tools=TOOLS, says_with_tools="Let me look."), _ask(api, streams))
    assert said(bob) == BOTH[:1]


def test_what_the_model_says_aloud_is_its_text():
    """The transcript of an audio reply; the text of one with parts that nobody knows is empty."""
    message = {"content": None, "audio": {"id": "a", "data": "AAAA", "transcript": "Hello"}}
    assert CHAT.reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).text == "Hello"
    assert CHAT.reply({"choices": []}).text == ""
    assert RESPONSES.reply({"output": [{"type": "new_kind"}]}).text == ""


def test_a_tool_that_openai_runs_is_not_a_call():
    """With its result beside it, the reply is whole."""
    ran = [{"type": "shell_call"}, {"type": "shell_call_output"}]
    said_ = {"type": "message", "content": [{"type": "output_text", "text": "Done."}]}
    assert not RESPONSES.reply({"output": [*ran, said_]}).calls
    assert RESPONSES.reply({"output": [ran[0], said_]}).calls
    assert not RESPONSES.reply({"output": [{"type": "web_search_call"}, said_]}).calls


# ---------------------------------------------------------------- what is left alone


def test_other_endpoints_are_left_alone(bob, embedder):
    """Embeddings, token counts, lists and old completions go out as they are, and nothing is remembered."""

    def use(client):
        client.embeddings.create(model="m", input=[QUESTION])
        for path in ("/completions", "/responses/input_tokens", "/responses/compact", "/moderations", "/batches"):
            client.post(path, body={"model": "m", "prompt": QUESTION, "input": [ASKED]}, cast_to=object)
        client.get("/responses/resp_1", cast_to=object)
        client.post("/chat/completions", body={"model": "m", "messages": []}, cast_to=object)

    fine = wire.Chatbot(REPLY)

    def bot(request):
        known = request.path.endswith(("/embeddings", "/chat/completions"))
        return fine(request) if known else Answer({"text": "fine"})

    with Loopback(bot) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        use(client)
        use(wrap(client, bob))
        half = len(server.bodies) // 2
        assert server.bodies[:half] == server.bodies[half:]
    assert said(bob) == []
    assert embedder.query_calls == 0


# ---------------------------------------------------------------- every allowed shape; the SDK's types are the judge

WORDS = st.sampled_from(["peanuts", "", "two\nlines", "é 漢字", "   "])
CHAT_PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}),
    st.just({"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}}),
    st.just({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
    st.just({"type": "file", "file": {"file_id": "f"}}),
)
TEXT_PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": WORDS}), min_size=1, max_size=2)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CHAT_MESSAGES = st.one_of(
    st.fixed_dictionaries(
        {"role": st.just("user"), "content": WORDS | st.lists(CHAT_PARTS, min_size=1, max_size=3)},
        optional={"name": st.just("Ann")},
    ),
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer"]), "content": WORDS | TEXT_PARTS}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": WORDS | TEXT_PARTS}),
    st.just({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}),
    st.just({"role": "assistant", "content": None, "tool_calls": [CALL]}),
    st.just({"role": "assistant", "tool_calls": [CALL]}),
    st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": st.just("c"), "content": WORDS | TEXT_PARTS}),
    st.just({"role": "function", "name": "f", "content": "42"}),
)
INPUT_PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("input_text"), "text": WORDS}),
    st.just({"type": "input_image", "image_url": PICTURE, "detail": "auto"}),
    st.just({"type": "input_file", "file_id": "f"}),
)
OUTPUT = {"type": "output_text", "text": "Hello", "annotations": []}
ITEMS = st.one_of(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "system", "developer"]),
            "content": WORDS | st.lists(INPUT_PARTS, min_size=1, max_size=3),
        },
        optional={"type": st.just("message")},
    ),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": WORDS}),
    st.just({"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [OUTPUT]}),
    st.just({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}),
    st.just({"type": "function_call_output", "call_id": "c", "output": "42"}),
    st.just({"type": "reasoning", "id": "r", "summary": []}),
    st.just({"type": "item_reference", "id": "m"}),
)
CHAT_TYPE: TypeAdapter[Any] = TypeAdapter(CompletionCreateParamsNonStreaming)
RESPONSES_TYPE: TypeAdapter[Any] = TypeAdapter(ResponseCreateParamsNonStreaming)
BLOCK = "<memory-block>"


def forced(value: Any) -> Any:
    """Iterables that the validator reads lazily are read, so that what is in them is judged too."""
    if isinstance(value, dict):
        return {key: forced(one) for key, one in value.items()}
    if isinstance(value, str | bytes | int | float | None):
        return value
    return [forced(one) for one in value]


@given(messages=st.lists(CHAT_MESSAGES, min_size=1, max_size=5))
@settings(max_examples=200)
def test_every_chat_body_is_valid(messages):
    """With a block behind every message of the user's, or in the system prompt; what was there is still there."""
    request = {"model": "m", "messages": messages}
    _judge(CHAT, CHAT_TYPE, request, "messages")


@given(items=st.lists(ITEMS, min_size=1, max_size=5) | WORDS)
@settings(max_examples=200)
def test_every_responses_body_is_valid(items):
    """As with chat; the type of a part of the input is another one."""
    _judge(RESPONSES, RESPONSES_TYPE, {"model": "m", "input": items}, "input")


def _judge(codec, adapter, request, name):
    was = copy.deepcopy(request)
    forced(adapter.validate_python(request))
    messages = codec.messages(request)
    users = [message for message in messages if message.role == "user"]
    inserted = codec.insert(request, {message.place: BLOCK for message in users})
    forced(adapter.validate_python(inserted))
    assert json.dumps(inserted).count(BLOCK) == len(users)
    for message in users:
        before = request[name] if isinstance(request[name], str) else request[name][message.place]["content"]
        *parts, block = inserted[name][message.place]["content"]
        assert block["text"] == BLOCK
        assert parts == before or not before or [part["text"] for part in parts] == [before]
    instructed = codec.instruct(request, BLOCK)
    forced(adapter.validate_python(instructed))
    assert json.dumps(instructed).count(BLOCK) == 1
    again = codec.messages(inserted)
    assert [(message.role, message.place) for message in again] == [(one.role, one.place) for one in messages]
    assert request == was
