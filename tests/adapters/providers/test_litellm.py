"""memlayer.adapters.litellm: every call of LiteLLM that answers a conversation has memory once, over any provider."""

from __future__ import annotations

import asyncio
import copy
import gc
import importlib
import inspect
import json
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from memlayer.errors import InvalidInputError
from memlayer.prompt import is_block
from memlayer.wrapping import wrap
from tests.adapters.loopback import Loopback
from tests.adapters.wires import anthropic, openai

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# LiteLLM's own, of which there are many: it imports as it goes, what it serialises is not what its types say, and one
# or other of its clients is left open. That memlayer warns of nothing is held by its other tests.
pytestmark = pytest.mark.filterwarnings("ignore")

# Not `import litellm`, whose types hide most of what it has.
litellm: Any = importlib.import_module("litellm")

FACT = "I am allergic to peanuts"
QUESTION = "May I eat peanuts today, what do you say?"
REPLY = "No peanuts for you."
CHAT = [{"role": "user", "content": QUESTION}]
TOOL = {"type": "function", "function": {"name": "pantry", "parameters": {"type": "object", "properties": {}}}}
TURN = [("user", QUESTION), ("assistant", REPLY)]

# By name: (a router's or the module's, what it is called with beside the model). Async ones begin with an a, but for
# Anthropic's messages, which are async under both names.
MODULE: dict[str, dict[str, Any]] = {
    "completion": {"messages": CHAT},
    "acompletion": {"messages": CHAT},
    "completion_with_retries": {"messages": CHAT},
    "acompletion_with_retries": {"messages": CHAT},
    "responses": {"input": QUESTION},
    "aresponses": {"input": CHAT},
    "anthropic_messages": {"messages": CHAT, "max_tokens": 9},
    "anthropic.messages.acreate": {"messages": CHAT, "max_tokens": 9},
}
ROUTER: dict[str, dict[str, Any]] = {
    "completion": {"messages": CHAT},
    "acompletion": {"messages": CHAT},
    "chat.completions.create": {"messages": CHAT},
    "abatch_completion_fastest_response": {"messages": CHAT},
    "responses": {"input": QUESTION},
    "aresponses": {"input": CHAT},
    "anthropic_messages": {"messages": CHAT, "max_tokens": 9},
    "aanthropic_messages": {"messages": CHAT, "max_tokens": 9},
}


class World:
    """Two providers, a user who said one thing before, and the way to them."""

    def __init__(self, memory: Any, embedder: Any, servers: dict[str, Loopback]) -> None:
        self.memory, self.embedder, self.servers = memory, embedder, servers
        self.settings: dict[str, dict[str, Any]] = {
            "openai": {
                "model": "openai/gpt-test",
                "api_base": f"{servers['openai'].url}/v1",
                "api_key": "none",
            },
            "anthropic": {
                "model": "anthropic/claude-test",
                "api_base": servers["anthropic"].url,
                "api_key": "none",
            },
        }

    def module(self, **options: Any) -> Any:
        return wrap(litellm, self.memory, session="now", **options)

    def plain_router(self, **options: Any) -> Any:
        models: list[Any] = [
            {"model_name": name, "litellm_params": settings} for name, settings in self.settings.items()
        ]
        return litellm.Router(model_list=models, retry_after=0, **options)

    def bodies(self) -> list[Any]:
        return [body for server in self.servers.values() for body in server.bodies]

    def turns(self) -> list[tuple[str, str]]:
        return [(turn.role, turn.text) for turn in self.memory.history(session="now")]


@pytest.fixture
def world(alice, embedder) -> Iterator[World]:
    alice.remember(FACT, session="before")
    with Loopback(openai.Chatbot(REPLY)) as one, Loopback(anthropic.Chatbot(REPLY)) as other:
        yield World(alice, embedder, {"openai": one, "anthropic": other})


def run(work: Callable[[], Any]) -> Any:
    """Runs a call; an async one in a loop of its own, whose clients are closed."""

    async def closing() -> Any:
        try:
            return await work()
        finally:
            await litellm.close_litellm_async_clients()

    return asyncio.run(closing())


def called(client: Any, name: str, **arguments: Any) -> list[Any]:
    """What a call gives: [the answer], or [the stream, its events ...]."""
    send = client
    for step in name.split("."):
        send = getattr(send, step)

    async def work() -> list[Any]:
        answer = send(**arguments)
        if inspect.isawaitable(answer):
            answer = await answer
        if not arguments.get("stream"):
            return [answer]
        if hasattr(type(answer), "__anext__") and not hasattr(type(answer), "__next__"):
            return [answer, *[event async for event in answer]]
        if name.split(".")[-1].startswith("a"):
            return [answer, *[event async for event in answer]]
        return [answer, *answer]

    return list(run(work))


def texts(body: Any) -> list[str]:
    """Every text in a request that a provider got, in order."""
    if isinstance(body, dict):
        own = [body[key] for key in ("text", "content") if isinstance(body.get(key), str)]
        return own + [text for value in body.values() if isinstance(value, dict | list) for text in texts(value)]
    return [text for value in body for text in texts(value)] if isinstance(body, list) else []


def blocks(body: Any) -> list[str]:
    return [text for text in texts(body) if is_block(text)]


def check_one_turn(world: World, requests: int = 1) -> None:
    """One block behind the user's words in each request, one recall, both sides remembered once."""
    bodies = world.bodies()
    assert len(bodies) == requests
    for body in bodies:
        assert texts(body)[-2:] == [QUESTION, *blocks(body)]
        assert FACT in blocks(body)[0]
    assert world.embedder.query_calls == 1
    assert world.turns() == TURN


def skip_what_litellm_lacks(name: str, stream: bool) -> None:
    if stream and "messages" in name and not find_spec("fastapi"):
        pytest.skip("LiteLLM streams Anthropic's messages with parts of its gateway only")
    if name.startswith("abatch") and stream:
        pytest.skip("of several streams LiteLLM can choose none")
    if name.endswith("with_retries") and not find_spec("tenacity"):
        pytest.skip("LiteLLM's own retries need tenacity")
    if name == "acompletion_with_retries" and stream:
        pytest.skip("LiteLLM gives a sync stream here, which its async one cannot read from every provider")


# ---------------------------------------------------------------- the paths


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("name", MODULE)
def test_every_call_of_the_module_has_memory_once(world, name, provider, stream):
    """The answer is of the type that LiteLLM gives; what is passed in stays as it was."""
    skip_what_litellm_lacks(name, stream)
    arguments = {**world.settings[provider], **MODULE[name], "stream": stream}
    before = copy.deepcopy(arguments)
    plain, *events = called(litellm, name, **arguments)
    for server in world.servers.values():
        server.requests.clear()
    wrapped, *more = called(world.module(), name, **arguments)
    assert arguments == before
    assert isinstance(wrapped, type(plain))
    assert (type(wrapped).__module__, type(wrapped).__qualname__) == (type(plain).__module__, type(plain).__qualname__)
    assert {type(event) for event in more} == {type(event) for event in events}
    check_one_turn(world)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("name", ROUTER)
def test_every_call_of_a_router_has_memory_once(world, name, provider, stream):
    """The same for a router, whose wrapped one is of its very type."""
    skip_what_litellm_lacks(name, stream)
    plain = world.plain_router()
    router = wrap(plain, world.memory, session="now")
    assert type(router) is type(plain)
    called(router, name, model=provider, **ROUTER[name], stream=stream)
    check_one_turn(world)


def test_arguments_may_come_without_names(world):
    """Positional arguments arrive where they were meant to."""
    settings = dict(world.settings["openai"])
    model = settings.pop("model")
    world.module().completion(model, CHAT, 30.0, 0.5, **settings)
    assert world.bodies()[0]["temperature"] == 0.5
    check_one_turn(world)


def test_the_first_of_several_models_is_one_turn(world):
    """batch_completion_models asks several models with the same block, and remembers the reply that came first."""
    settings = {key: value for key, value in world.settings["openai"].items() if key != "model"}
    world.module().batch_completion_models(models=["openai/one"], messages=CHAT, **settings)
    check_one_turn(world)


def test_completion_that_is_told_to_be_async(world):
    """`completion(acompletion=True)` gives a coroutine, and is remembered when that ends."""
    if tuple(map(int, version("litellm").split(".")[:2])) < (1, 109):
        pytest.skip("LiteLLM cannot do this yet")
    called(world.module(), "completion", acompletion=True, messages=CHAT, **world.settings["openai"])
    check_one_turn(world)


# ---------------------------------------------------------------- the view of the module


def test_the_module_is_a_view(world):
    """It is a module of the same name with all that LiteLLM has; the module itself stays as it is."""
    plain = {name: getattr(litellm, name) for name in ("completion", "acompletion", "responses", "anthropic")}
    view = world.module()
    assert isinstance(view, ModuleType)
    assert (view.__name__, type(view).__name__) == ("litellm", "module")
    assert view.Router is litellm.Router
    assert view.embedding is litellm.embedding
    assert view.anthropic.messages.__name__ == litellm.anthropic.messages.__name__
    assert set(dir(litellm)) <= set(dir(view))
    assert inspect.signature(view.completion) == inspect.signature(litellm.completion)
    assert view.completion is view.completion
    assert view.memlayer.health.ok
    with pytest.raises(AttributeError):
        view.nothing_of_the_kind  # noqa: B018
    assert all(getattr(litellm, name) is value for name, value in plain.items())


def test_settings_reach_the_one_module_that_there_is(world, monkeypatch):
    """What is set on the view is set where LiteLLM's calls read it."""
    monkeypatch.setattr(litellm, "drop_params", False)
    world.module().drop_params = True
    assert litellm.drop_params


def test_two_views_are_two_users(world, store):
    """Each view has its own user's memory, and the module none."""
    bob = store.user("bob")
    wrap(litellm, bob, session="now").completion(messages=CHAT, **world.settings["openai"])
    litellm.completion(messages=CHAT, **world.settings["openai"])
    assert [blocks(body) for body in world.bodies()] == [[], []]
    assert world.turns() == []
    assert len(bob.history()) == 2


def test_what_is_neither_module_nor_router_is_refused(world):
    """Other objects of LiteLLM are named in the error."""
    with pytest.raises(InvalidInputError, match="ModelResponse"):
        wrap(litellm.ModelResponse(), world.memory)


def test_embeddings_never_come_from_litellm(world, monkeypatch):
    """The store embeds with its own embedder; LiteLLM's embeddings are called by whoever calls them."""
    monkeypatch.setattr(litellm, "embedding", lambda **_: pytest.fail("embedded through LiteLLM"))
    world.module().completion(messages=CHAT, **world.settings["openai"])
    assert all("input" not in body for body in world.bodies())


def test_importing_the_adapter_asks_nobody_for_prices():
    """LiteLLM's list of prices comes from its own files, unless the environment says otherwise."""
    program = "import os, memlayer.adapters.litellm; print(os.environ['LITELLM_LOCAL_MODEL_COST_MAP'])"
    environment = {"PATH": "", "LITELLM_LOCAL_MODEL_COST_MAP": ""}
    del environment["LITELLM_LOCAL_MODEL_COST_MAP"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split()[-1] == "True"


def test_a_missing_litellm_says_what_to_install():
    """Without LiteLLM the adapter's import names the extra."""
    program = "import sys; sys.modules['litellm'] = None; import memlayer.adapters.litellm"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert 'MissingExtraError: LiteLLM is missing: pip install "memlayer-sdk[litellm]"' in done.stderr


# ---------------------------------------------------------------- one logical call


@pytest.mark.parametrize("name", ["completion", "acompletion", "aresponses"])
def test_retries_are_one_turn(world, name):
    """LiteLLM tries again by itself: the same block each time, one recall, one turn."""
    world.servers["openai"].answer = openai.Chatbot(REPLY, failures=1)
    router = wrap(world.plain_router(num_retries=2), world.memory, session="now")
    called(router, name, model="openai", **ROUTER[name])
    check_one_turn(world, requests=2)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", ["completion", "acompletion"])
def test_a_fallback_to_another_provider_is_one_turn(world, name, stream):
    """The other provider gets the same block in its own format."""
    world.servers["openai"].answer = openai.Chatbot(failures=99)
    router = world.plain_router(num_retries=0, fallbacks=[{"openai": ["anthropic"]}])
    called(wrap(router, world.memory, session="now"), name, model="openai", messages=CHAT, stream=stream)
    assert {len(server.bodies) > 0 for server in world.servers.values()} == {True}
    check_one_turn(world, requests=len(world.bodies()))


def test_a_call_that_fails_remembers_nothing(world):
    """An error of the provider's comes out as LiteLLM raises it, and there is no turn; the next try is the first."""
    world.servers["openai"].answer = openai.Chatbot(REPLY, failures=1, status=400)
    view = world.module()
    with pytest.raises(litellm.BadRequestError):
        view.completion(messages=CHAT, **world.settings["openai"])
    assert world.turns() == []
    view.completion(messages=CHAT, **world.settings["openai"])
    check_one_turn(world, requests=2)


def test_a_failure_of_memory_does_not_reach_the_chat(world, monkeypatch):
    """Where recall fails the request goes out as it came."""
    monkeypatch.setattr(type(world.memory), "recall", lambda *_, **__: 1 / 0)
    answer = world.module().completion(messages=CHAT, **world.settings["openai"])
    assert answer.choices[0].message.content == REPLY
    assert world.bodies()[0]["messages"] == CHAT


# ---------------------------------------------------------------- what is remembered


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_tool_loop_is_one_turn(world, provider, stream):
    """The call of a tool and its result are no turns; messages may be LiteLLM's objects, and stay as they are."""
    wire: Any = openai if provider == "openai" else anthropic
    world.servers[provider].answer = wire.Chatbot(REPLY, tools=[("pantry", {})], says_with_tools="A moment.")
    view = world.module()
    settings = {**world.settings[provider], "tools": [TOOL], "stream": stream}
    answer, *chunks = called(view, "completion", messages=CHAT, **settings)
    if stream:
        answer = litellm.stream_chunk_builder(chunks)
    assert world.turns() == TURN[:1]
    message = answer.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "peanuts, rice"}
    messages = [*CHAT, message, result]
    before = copy.deepcopy(messages)
    called(view, "completion", messages=messages, **settings)
    assert messages == before
    first, second = world.bodies()
    assert len(blocks(first)) == 1
    assert blocks(first) == blocks(second)
    assert world.embedder.query_calls == 1
    assert world.turns() == TURN


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("provider", "bot"),
    [
        ("openai", openai.Chatbot(refusal="I will not.")),
        ("openai", openai.Chatbot(finish="content_filter")),
        ("anthropic", anthropic.Chatbot(refusal="I will not.")),
    ],
    ids=["refusal", "filter", "anthropic"],
)
@pytest.mark.parametrize("name", ["completion", "responses"])
def test_a_refusal_is_no_memory(world, name, provider, bot, stream):
    """Of a refused reply, or one that a content filter cut off, only the user's turn is kept."""
    world.servers[provider].answer = bot
    called(world.module(), name, **world.settings[provider], **MODULE[name], stream=stream)
    assert world.turns() == TURN[:1]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_first_of_several_choices_counts(world, stream):
    """With n=2 the first choice is remembered."""
    called(world.module(), "completion", messages=CHAT, n=2, stream=stream, **world.settings["openai"])
    check_one_turn(world)


def test_reasoning_is_not_remembered(world):
    """What the model thought stays in the reply, and out of the memory."""
    world.servers["anthropic"].answer = anthropic.Chatbot(REPLY, thinking="Peanuts, hm.")
    (answer,) = called(world.module(), "completion", messages=CHAT, **world.settings["anthropic"])
    assert answer.choices[0].message.reasoning_content == "Peanuts, hm."
    check_one_turn(world)


def test_images_keep_their_place(world):
    """The block stands behind all parts of the message, in their order."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [image, {"type": "text", "text": QUESTION}, image]
    world.module().completion(messages=[{"role": "user", "content": parts}], **world.settings["openai"])
    content = world.bodies()[0]["messages"][0]["content"]
    assert content[:3] == parts
    assert is_block(content[3]["text"])
    assert world.turns() == TURN


@pytest.mark.parametrize("kind", ["chat", "responses", "messages"])
def test_later_turns_begin_as_the_earlier_ones_did(world, kind):
    """The messages of the first request stand unchanged at the head of the second one's."""
    name, key = {"chat": ("completion", "messages"), "responses": ("responses", "input")}.get(
        kind, ("anthropic_messages", "messages")
    )
    provider = "anthropic" if kind == "messages" else "openai"
    more = {"max_tokens": 9} if kind == "messages" else {}
    view, conversation = world.module(), list[Any](CHAT)
    for question in ("And what of cashew nuts, may I eat those?", None):
        called(view, name, **world.settings[provider], **{key: conversation}, **more)
        conversation = [
            *conversation,
            {"role": "assistant", "content": REPLY},
            {"role": "user", "content": question},
        ]
    first, second = (body[key] for body in world.bodies())
    assert len(second) == 3
    assert second[:1] == first
    assert blocks(first)


def test_what_the_server_keeps_gets_no_block_in_its_input(world):
    """With `previous_response_id` the block goes into this request's instructions."""
    arguments = {"input": QUESTION, "previous_response_id": "resp_0", "instructions": "Be brief."}
    world.module().responses(**arguments, **world.settings["openai"])
    (body,) = world.bodies()
    assert blocks(body["input"]) == []
    brief, block = body["instructions"].split("\n\n", 1)
    assert (brief, is_block(block)) == ("Be brief.", True)
    assert world.turns() == TURN


@pytest.mark.parametrize("system", [None, "Be brief.", [{"type": "text", "text": "Be brief."}]])
def test_placement_in_the_system_prompt(world, system):
    """Anthropic's `system`, absent, a text or blocks, has the block at its end."""
    given = {} if system is None else {"system": system}
    view = world.module(placement="system")
    called(view, "anthropic_messages", messages=CHAT, max_tokens=9, **given, **world.settings["anthropic"])
    (body,) = world.bodies()
    assert body["messages"] == CHAT
    assert "</memory-" in json.dumps(body["system"])
    assert ("Be brief." in json.dumps(body["system"])) == (system is not None)


# ---------------------------------------------------------------- streams that end early


@pytest.mark.parametrize("error", [False, True], ids=["cut", "error"])
@pytest.mark.parametrize("name", ["completion", "acompletion", "responses", "aresponses"])
def test_a_stream_that_breaks_keeps_the_users_turn(world, name, error):
    """The error comes out as it does without memory; of the reply nothing is kept."""
    world.servers["openai"].answer = openai.Chatbot(REPLY, cut=2, error=error)
    with pytest.raises(Exception, match=r".") as plain:
        called(litellm, name, **world.settings["openai"], **MODULE[name], stream=True)
    with pytest.raises(type(plain.value)):
        called(world.module(), name, **world.settings["openai"], **MODULE[name], stream=True)
    assert world.turns() == TURN[:1]


def test_a_partial_reply_is_kept_on_request(world):
    """With `keep_partial` the beginning of the reply is remembered, and says that it is one."""
    world.servers["openai"].answer = openai.Chatbot(REPLY, cut=2)
    with pytest.raises(litellm.exceptions.MidStreamFallbackError):
        called(world.module(keep_partial=True), "completion", **world.settings["openai"], messages=CHAT, stream=True)
    assert world.turns() == [("user", QUESTION), ("assistant", "No peanuts")]
    assert world.memory.history(session="now")[-1].metadata == {"incomplete": True}


@pytest.mark.parametrize("ending", ["close", "with", "let go"])
def test_a_stream_that_is_left_keeps_the_users_turn(world, ending):
    """Closed, left by its `with`, or dropped: the user's turn is there, nothing of the reply."""
    stream = world.module().completion(messages=CHAT, stream=True, **world.settings["openai"])
    assert isinstance(stream, litellm.CustomStreamWrapper)
    next(stream)
    if ending == "close":
        stream.close()
    elif ending == "with":
        with stream:
            pass
    del stream
    gc.collect()
    world.memory.loading.wait(0)
    wait_for(lambda: world.turns() == TURN[:1])


def test_an_async_stream_that_is_left_keeps_the_users_turn(world):
    """The same for an async one that is closed."""
    view = world.module()

    async def work() -> None:
        stream = await view.acompletion(messages=CHAT, stream=True, **world.settings["openai"])
        await anext(stream)
        await stream.aclose()

    run(work)
    assert world.turns() == TURN[:1]


def test_a_stream_that_was_read_to_its_last_word_is_whole(world):
    """Whoever stops after the reason to finish has the whole reply in memory."""
    with world.module().completion(messages=CHAT, stream=True, **world.settings["openai"]) as stream:
        for chunk in stream:
            if chunk.choices[0].finish_reason:
                break
    assert world.turns() == TURN


def wait_for(holds: Callable[[], bool]) -> None:
    """A dropped stream is written behind the caller's back."""
    from memlayer import workers

    for _ in range(200):
        if holds():
            return
        workers.submit(lambda: None).result(10)
        gc.collect()
    assert holds()


# ---------------------------------------------------------------- many at once


def test_fifty_tasks_of_two_users_at_once(world, store):
    """No request of one user's carries a word of the other's."""
    users = {"alice": world.memory, "bob": store.user("bob")}
    users["bob"].remember("I am fond of peanuts", session="before")
    world.servers["openai"].answer = openai.Chatbot(REPLY)

    async def ask(number: int) -> None:
        name = ("alice", "bob")[number % 2]
        view = wrap(litellm, users[name], session=f"s{number}")
        question = f"{name} asks whether peanuts are good"
        await view.acompletion(messages=[{"role": "user", "content": question}], **world.settings["openai"])

    async def work() -> None:
        await asyncio.gather(*map(ask, range(50)))

    run(work)
    assert len(world.bodies()) == 50
    for body in world.bodies():
        other = {"alice": "fond of", "bob": "allergic"}
        (name,) = [name for name in users if f"{name} asks" in texts(body)[0]]
        assert other[name] not in json.dumps(body)
        assert "peanuts" in blocks(body)[0]
